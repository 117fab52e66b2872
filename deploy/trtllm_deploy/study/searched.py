"""The ``study:`` block: up to which load each cell keeps limits. Cells in, answers out.

Every run stands in the study's ledger, so an answer is read from there once all are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llm_perf import api
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.studies import StudySpec
from trtllm_deploy.study.asked import Asked
from trtllm_deploy.study.up import Up


def question_of(study: StudySpec, seed: int) -> api.Question:
    """The block as llm_perf searches it."""
    return api.Question(
        tuple(api.Criterion(api.parse_limit(each, "limits")) for each in study.limits),
        study.vary,
        api.CONFIRMED if study.confirmed else api.INDICATIVE,
        seed,
        study.budget,
    )


@dataclass(frozen=True, slots=True)
class Searches:
    """The searches that a file asks for, one for each cell."""

    asked: Asked
    question: api.Question

    @classmethod
    def of(cls, asked: Asked) -> Searches | None:
        """What the file asks for; None where it has no ``study:``."""
        study = asked.file.deployment.study
        return cls(asked, question_of(study, asked.settings.seed)) if study else None

    def answer(self, plan: CellPlan) -> api.Answer | None:
        """What the ledger says of a cell; None where runs are left to make."""
        return api.searched(self.question, self._site(plan, None, api.Conditions()))

    def show(self, plan: CellPlan) -> bool:
        """Print a cell's answer; whether its search came to an end."""
        if answer := self.answer(plan):
            api.print_answer(answer, plan.cell.name)
        return answer is not None

    def search(self, plan: CellPlan, up: Up, say: Callable[[str], None]) -> api.Answer:
        """Search at a cell that is up. Raises UserError: its server is gone."""
        title = "search"

        def watch(seen: api.Progress) -> None:
            say(f"{title}: {seen.done}/{seen.total}, {seen.in_flight} in flight")

        def on_run(ask: api.Ask, seen: api.Seen, _before: bool) -> None:
            nonlocal title
            title = f"search, after {ask.value:.4g} ({seen.attainment:.0%} within)"

        conditions = api.Conditions(
            self.asked.settings.request_timeout, watch, server_metrics_url=up.metrics_url
        )
        return api.search_limits(self.question, self._site(plan, up, conditions), on_run)

    def _site(self, plan: CellPlan, up: Up | None, conditions: api.Conditions) -> api.Site:
        first = self.asked.of(plan, counted=up is not None)[0]
        if up is not None:
            first = first.at(up.endpoint)
        endpoint = up.endpoint if up else api.Endpoint("localhost:8001", "grpc", "ensemble")
        return api.Site(
            endpoint,
            first.target,
            first.workload,
            self.asked.workspace.results,
            conditions,
            study=first.study,
            versions=first.versions,
            gpu=first.gpu,
        )

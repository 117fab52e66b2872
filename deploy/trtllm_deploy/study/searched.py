"""The ``study:`` blocks: up to which load each cell keeps limits. Cells in, answers out.

Every run stands in the study's ledger, so an answer is read from there once all are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llm_perf import api
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.studies import StudySpec
from trtllm_deploy.study.asked import Asked
from trtllm_deploy.study.up import NOT_UP, Up


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
    """The searches that a file asks for, each at each cell; none where it has no ``study:``."""

    asked: Asked
    questions: tuple[api.Question, ...]

    @classmethod
    def of(cls, asked: Asked) -> Searches:
        """What the file asks for."""
        seed = asked.settings.seed
        return cls(asked, tuple(question_of(each, seed) for each in asked.file.deployment.study))

    def left(self, plan: CellPlan) -> list[api.Question]:
        """Those of a cell that the ledger has no answer to."""
        return [each for each in self.questions if self._answer(each, plan) is None]

    def show(self, plan: CellPlan) -> bool:
        """Print a cell's answers; whether each shows a load that keeps the limits."""
        answers = [self._answer(each, plan) for each in self.questions]
        for answer in filter(None, answers):
            api.print_answer(answer, plan.cell.name)
        return all(answer and answer.low for answer in answers)

    def search(
        self, question: api.Question, plan: CellPlan, up: Up, say: Callable[[str], None]
    ) -> api.Answer:
        """Search at a cell that is up. Raises UserError: its server is gone."""
        title = "search"

        def watch(seen: api.Progress) -> None:
            say(f"{title}: {seen.done}/{seen.total}, {seen.in_flight} in flight")

        def on_run(ask: api.Ask, seen: api.Seen, before: bool) -> None:
            nonlocal title
            title = f"search, after {ask.value:.4g} ({seen.attainment:.0%} within)"
            if not before:
                say(f"search at {ask.value:.4g}: {seen.attainment:.0%} within\n")

        conditions = up.conditions(api.Conditions(self.asked.settings.request_timeout, watch))
        return api.search_limits(question, self._site(plan, up, conditions), on_run)

    def _answer(self, question: api.Question, plan: CellPlan) -> api.Answer | None:
        return api.searched(question, self._site(plan, None, api.Conditions()))

    def _site(self, plan: CellPlan, up: Up | None, conditions: api.Conditions) -> api.Site:
        first = self.asked.of(plan, counted=up is not None)[0]
        if up is not None:
            first = first.at(up.endpoint)
        return api.Site(
            up.endpoint if up else NOT_UP,
            first.target,
            first.workload,
            self.asked.workspace.results,
            conditions,
            study=first.study,
            versions=first.versions,
            gpu=first.gpu,
        )

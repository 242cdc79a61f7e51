"""`autoscaler check`: everything that can be known to be wrong before the daemon starts.

Order: the file, the adapters' own settings, then what the host and the network say (`check_probes`). Changes nothing,
and may run beside a live daemon. The first two decide exit code 2, a probe that refuses decides 3.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoscaler import config as configuration
from autoscaler.calls import Calls
from autoscaler.check_probes import probe_host, probe_online
from autoscaler.clock import SystemClock
from autoscaler.config_types import Config, ConfigError, Problem
from autoscaler.core import runner_prefix
from autoscaler.plugins import make_forges, make_providers
from autoscaler.reach import reach_note, reach_of
from autoscaler.rules import rules_of
from autoscaler.spi import Finding, Forge, Provider, Surroundings, Verdict

EXIT_DONE, EXIT_CONFIG, EXIT_REFUSED = 0, 2, 3

_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "warning", Verdict.REFUSED: "REFUSED", Verdict.INVALID: "INVALID"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What was found, worst last in each area as it was come upon."""

    source: Path
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        verdicts = {finding.verdict for finding in self.findings}
        if Verdict.INVALID in verdicts:
            return EXIT_CONFIG
        return EXIT_REFUSED if Verdict.REFUSED in verdicts else EXIT_DONE

    def text(self) -> str:
        """For people: one line per finding, the remedy below it, a closing line."""
        lines = []
        for finding in self.findings:
            lines.append(f"{_MARKS[finding.verdict]:>8}  {finding.key}: {finding.message}")
            if finding.remedy:
                lines.append(f"{'':>8}  -> {finding.remedy}")
        bad = sum(finding.verdict in (Verdict.INVALID, Verdict.REFUSED) for finding in self.findings)
        warned = sum(finding.verdict is Verdict.WARNING for finding in self.findings)
        lines.append(
            f"{self.source}: {bad or 'no'} error{'' if bad == 1 else 's'}, {warned or 'no'} warning"
            f"{'' if warned == 1 else 's'}"
        )
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "file": str(self.source),
            "exit_code": self.exit_code,
            "findings": [
                {"verdict": str(one.verdict), "key": one.key, "message": one.message, "remedy": one.remedy}
                for one in self.findings
            ],
        }


async def check(path: Path, *, online: bool = False, environ: Mapping[str, str] | None = None) -> CheckReport:
    """Check a configuration file, the host it is for and, with `online`, its forges and clouds."""
    try:
        config = configuration.load(path, environ=os.environ if environ is None else environ)
    except ConfigError as error:
        return CheckReport(source=path, findings=_invalid(error.problems))
    findings = [_finding(problem, Verdict.WARNING) for problem in config.warnings]
    sizes = f"{len(config.forges)} forges, {len(config.providers)} providers, {len(config.pools)} pools"
    findings.insert(0, Finding(verdict=Verdict.OK, key="(file)", message=f"it is valid: {sizes}"))
    calls = Calls()
    try:
        findings += await _check_adapters(config, calls, online=online)
    finally:
        await calls.aclose()
    return CheckReport(source=path, findings=tuple(findings))


async def _check_adapters(config: Config, calls: Calls, *, online: bool) -> list[Finding]:
    surroundings = Surroundings(
        deployment=config.autoscaler.name,
        runner_prefix=runner_prefix(config.autoscaler.name),
        clock=SystemClock(),
        gates=calls,
        public_url=lambda: config.autoscaler.public_url,
    )
    findings: list[Finding] = []
    forges: list[Forge] = []
    providers: list[Provider] = []
    try:
        forges += make_forges(config, surroundings).values()
    except ConfigError as error:
        findings += _invalid(error.problems)
    try:
        providers += make_providers(config, surroundings).values()
    except ConfigError as error:
        findings += _invalid(error.problems)
    try:
        findings += targets(config, providers)
        findings += await probe_host(config, providers)
        if online:
            findings += await probe_online(config, forges, providers)
    finally:
        for forge in forges:
            await forge.aclose()
        for provider in providers:
            await provider.aclose()
    return findings


def targets(config: Config, providers: Sequence[Provider]) -> list[Finding]:
    """Pools without machines that stand ready whose wait target no boot can keep, as far as anybody knows before the
    first machine came: the daemon measures, and its page says what would keep it."""
    at_once = {provider.name for provider in providers if provider.traits.is_up_at_once}
    findings = []
    for number, pool in enumerate(rules_of(config).pools.values()):
        note = reach_note(pool, reach_of(pool, {}))
        if note and not pool.min and at_once.isdisjoint(pool.providers):
            message = f"a target of {pool.target.total_seconds():g} s {note}"
            findings.append(
                Finding(
                    verdict=Verdict.WARNING,
                    key=f"pool[{number}].wait.target",
                    message=message,
                    remedy="raise the target, bake an image that boots quicker, or set min: the status page says how "
                    "many machines would do once jobs came",
                )
            )
    return findings


def _invalid(problems: tuple[Problem, ...]) -> tuple[Finding, ...]:
    return tuple(_finding(problem, Verdict.INVALID) for problem in problems)


def _finding(problem: Problem, verdict: Verdict) -> Finding:
    return Finding(verdict=verdict, key=problem.key, message=problem.message, remedy=problem.remedy)

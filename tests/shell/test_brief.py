from dataclasses import replace

import torch

from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.shell.brief import brief_lines
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup


def verdict_of(evidence, removed=2, findings=()):
    scores = torch.arange(100).double()
    return Verdict(
        scores,
        1 / (1 + scores),
        scores < 100 - removed,
        torch.arange(100) % 2,
        torch.zeros(100).long(),
        torch.zeros(2).double(),
        evidence,
        calibration="members" if findings else "wrong-label null",
        false_positive_rate=0.01,
        scorer="recommended",
        fingerprint="5f0c",
        findings=findings,
    )


def labels(present, low, about, high, power=None, pairs=()):
    return Evidence(present, about, low, high, 0.95, 0.003, pairs=pairs, power=power)


def test_findings_of_several_scorers():
    pairs = (SuspectPair(0, 1, 8, 7.6, 5, 9, 1e-9), SuspectPair(1, 0, 2, 1.6, 1, 3, 1e-3))
    wrong = labels(True, 0.05, 0.09, 0.12, 0.8, pairs)
    group = SuspectGroup(1, 20, 8.0, 0.9, 0.1, True)
    groups = Evidence(True, 0.2, 0.1, 0.3, 0.95, 0.003, kind="groups", groups=(group,))
    joint = Evidence(True, 0.29, 0.2, 0.4, 0.95, 0.003, kind="several kinds", power=0.8)
    findings = (
        Finding("confidence", 9, wrong),
        Finding("groups", 20, groups),
        Finding("other", 0, None, "no \x1bluck"),
    )
    assert brief_lines(verdict_of(joint, 29, findings), ["cat\x1b", "dog"]) == [
        "Evidence of poison: 29 of 100 samples (29.0 %) are suspicious.",
        "- wrong labels: about 9 (5 to 12); 9 listed; of 5 % random wrong labels, 80 % would be found",
        "  most often: cat\\x1b that look like dog (8), dog that look like cat\\x1b (2)",
        "- backdoors: 20 samples listed, in 1 group, labeled dog",
        "- other could not decide: no \\x1bluck",
        "- not looked for: individually perturbed inputs",
        "- easily missed: backdoors that look natural (reflections, warped photos), are on half of a class, have fewer "
        "than about 20 samples, or have correct labels in data of few classes; collisions in the features of another "
        "network",
    ]


def test_no_evidence():
    assert brief_lines(verdict_of(labels(False, 0, 0.01, 0.02, 0.7), 0))[:2] == [
        "No evidence of wrong labels.",
        "- wrong labels: no evidence; 1 (0 to 2) estimated; of 5 % random wrong labels, 70 % would be found",
    ]


def test_estimate_that_is_not_sure_is_said_with_what_to_do():
    evidence = labels(False, 0.002, 0.05, 0.08, 0.6)
    verdict = replace(verdict_of(evidence, 0), posterior=torch.linspace(0, 0.52, 100).double(), posterior_threshold=1.0)
    assert brief_lines(verdict)[:4] == [
        "No clear evidence of poison, but some labels may be wrong.",
        "- wrong labels: about 5 (0 to 8), too uncertain to list any; of 5 % random wrong labels, 60 % would be found",
        "- the report shows the most suspicious samples first: tick those to remove",
        "- 4 labels are more likely wrong than correct; to list them: --scorer fast --remove-without-evidence",
    ]
    assert brief_lines(verdict_of(evidence, 0))[2:] == [
        "- the report shows the most suspicious samples first: tick those to remove",
        "- not looked for: backdoors, individually perturbed inputs",
    ]


def test_findings_of_one_kind_are_told_apart():
    trusted = Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003, kind="unlike trusted data")
    lines = brief_lines(verdict_of(trusted, 2, (Finding("label-blind", 1, trusted), Finding("groups", 1, trusted))))
    assert lines[1].startswith("- samples unlike the trusted data by label-blind: ")
    assert lines[2].startswith("- samples unlike the trusted data by groups: ")


def test_little_power_is_not_called_the_absence_of_evidence():
    lines = brief_lines(verdict_of(labels(False, 0, 0, 0.3, 0.1), 0))
    assert lines[0] == "Wrong labels can hardly be found here."
    assert "- wrong labels: can hardly be found here; of 5 % random wrong labels, 10 % would be found" in lines


def test_removal_without_evidence_is_said():
    assert brief_lines(verdict_of(labels(False, 0, 0, 0.1), 1))[0] == (
        "No evidence of wrong labels. 1 of 100 samples (1.0 %) is suspicious."
    )


def test_shares_with_trusted_data_are_lower_bounds():
    evidence = Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003, kind="unlike trusted data")
    lines = brief_lines(verdict_of(evidence))
    assert lines[1] == "- samples unlike the trusted data: at least about 10 (5 to 20); 2 listed"
    assert lines[2:] == [
        "- how much of the poison would be found was not measured",
        "- not looked for: poison of any kind that scores like the trusted samples of its class",
    ]
    with_power = brief_lines(verdict_of(replace(evidence, power=0.54)))
    assert with_power[1].endswith("; 2 listed; of 5 % random wrong labels, 54 % would be found")
    assert not any("not measured" in line for line in with_power)

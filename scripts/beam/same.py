"""Part `same`: one input through `sluice run` and through every runner and environment."""

import inputs
import rows
from claims import say

RUNNERS = {
    "python": ["external"],
    "prism": ["process", "external"],
    "flink": ["process", "external"],
    "flink-cluster": ["process", "external"],
    "spark": ["process", "external"],
    "spark-cluster": ["process", "external"],
}
KINDS = {"process": "PROCESS", "external": "EXTERNAL"}


def part(torture):
    with torture.work("same") as work:
        pipeline = inputs.write_pipeline(work)
        folder = inputs.write_of_all_kinds(work, torture.random("same"))
        alone = torture.sluice.run(pipeline, [folder], work / "alone")
        if alone.code:
            torture.claims.add("sluice run scores the input", f"exit code {alone.code}: {alone.reason()}", False)
            return
        expected = rows.rows(work / "alone")
        statuses = rows.statuses(expected)
        say(f"{len(expected)} shards, {statuses}")
        with torture.pool(work) as pool:
            for runner, environments in RUNNERS.items():
                with torture.runners.running(runner) as endpoint:
                    for kind in environments:
                        environment = pool.environment if kind == "external" else kind
                        output = work / f"{runner}-{kind}"
                        submit = torture.sluice.submit(pipeline, [folder], output, endpoint, environment)
                        ended = submit.wait()
                        fault = f"exit code {ended.code}: {ended.reason()}"
                        if ended.code == 0:
                            fault = torture.fault(output, expected)
                            if fault is None and (strays := rows.strays(output)):
                                fault = f"{len(strays)} files that the manifest does not list: {strays[:3]}"
                        figure = f"{rows.count(expected)} rows of {len(expected)} shards, {ended.seconds:.1f} s"
                        claim = f"{runner}, {KINDS[kind]}: rows identical to sluice run, verified"
                        torture.claims.add(claim, fault or figure, fault is None)

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb import workloads
from mlopsnb.errors import UserError
from mlopsnb.records import Workload

NAMES = [f.name for f in fields(Workload)]


def test_nothing_asked_is_nothing_given():
    assert workloads.read() == Workload()


@given(st.integers(1, 1024_000))
def test_millicores_are_cores(count):
    assert workloads.read(cpu=f"{count}m").cpu == count / 1000


@given(st.integers(8, 4096), st.sampled_from([("Mi", 1 << 20), ("Gi", 1 << 30), ("M", 10**6), ("GB", 10**9)]))
def test_memory_has_units(count, unit):
    assert workloads.read(memory=f"{count}{unit[0]}").memory == count * unit[1]
    assert workloads.read(memory=count * unit[1]).memory == count * unit[1]


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
)


@given(st.dictionaries(st.sampled_from(NAMES), anything))
def test_whatever_comes_is_read_or_refused_by_name(given):
    try:
        read = workloads.read(**given)
    except UserError as exc:
        refused = exc.message
    else:
        refused = ""
    if refused:
        assert any(name in refused for name in given)
        return
    assert read.replicas >= 1
    assert read.min_replicas is None or 1 <= read.min_replicas <= read.max_replicas
    assert read.cpu is None or 0 < read.cpu <= 1024
    assert read.memory is None or read.memory >= 4 << 20
    assert read.ttl is None or read.ttl >= 1


def test_all_that_there_is():
    assert workloads.read(
        replicas=2,
        min_replicas=1,
        max_replicas=4,
        cpu="1.5",
        memory="2Gi",
        gpu=1,
        secrets=["token"],
        config_maps=("flags",),
        node_selector={"pool": "ml"},
        tolerations=["dedicated=ml:NoSchedule", "gpu", {"key": "a", "operator": "Exists"}],
        expose="ingress",
        host="fraud.example.com",
        network_policy=True,
        ttl="7d",
    ) == Workload(
        replicas=2,
        min_replicas=1,
        max_replicas=4,
        cpu=1.5,
        memory=2 << 30,
        gpu=1,
        secrets=("token",),
        config_maps=("flags",),
        node_selector={"pool": "ml"},
        tolerations=(
            {"key": "dedicated", "value": "ml", "effect": "NoSchedule", "operator": "Equal"},
            {"key": "gpu", "operator": "Exists"},
            {"key": "a", "operator": "Exists"},
        ),
        expose="ingress",
        host="fraud.example.com",
        network_policy=True,
        ttl=604800,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicas": 0}, "replicas must be a number from 1 to 1000, found 0"),
        ({"replicas": True}, "found True"),
        ({"min_replicas": 2}, "min_replicas goes with max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3, more than max_replicas, 2"),
        ({"cpu": "2 cores"}, "cpu must be in cores"),
        ({"cpu": float("nan")}, "cpu must be in cores"),
        ({"memory": 512}, "memory must be 4 MiB or more, found 512"),
        ({"memory": "much"}, "found 'much'"),
        ({"secrets": "token"}, "secrets takes a list, found 'token'"),
        ({"secrets": ["A=b"]}, "'A=b' is no name of one"),
        ({"node_selector": {"a": 1}}, "node_selector maps labels"),
        ({"tolerations": ["a=b:Never"]}, "tolerations: 'a=b:Never' is none"),
        ({"expose": "nodport"}, "did you mean 'nodeport'"),
        ({"host": "a.example.com"}, "needs a way in that knows names"),
        ({"expose": "ingress", "host": "a_b"}, "host must be a name as DNS has it"),
        ({"ttl": 0}, "ttl must be a second or more"),
    ],
)
def test_what_is_wrong(given, message):
    with pytest.raises(UserError, match=message):
        workloads.read(**given)


def test_a_target_says_what_it_does_not_know():
    asked = workloads.read(replicas=2, secrets=["token"], ttl=60)
    workloads.check(asked, NAMES, "kubernetes")
    with pytest.raises(
        UserError, match=r"target 'docker' knows no secrets and no ttl; it knows cpu, replicas"
    ):
        workloads.check(asked, ("replicas", "cpu"), "docker")
    with pytest.raises(UserError, match="target 'process' knows no replicas .*; it knows none of these"):
        workloads.check(asked, (), "process")

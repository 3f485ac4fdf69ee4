"""Requests and answers over the real socket, while everybody is well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ipc_helpers import RawSocket, ScriptedEngine, events_of, eventually, finished, info, submit

from paddle_ds.errors import EngineUnavailable
from paddle_ds.ipc.client import EngineClient
from paddle_ds.ipc.messages import Abort, Delta, Failed, Finished, Stats, Step, Submit, TokenLogprob, encode

STATS = Stats(1, 2, 3, 4, 5, 6, 7, 8, 9)


def test_a_worker_learns_of_the_engine_by_itself(client: EngineClient, start_engine: Callable[..., ScriptedEngine]) -> None:
    assert (client.connected, client.info) == (False, None)
    start_engine()
    eventually(lambda: client.connected)
    assert client.info == info()


def test_tokens_come_in_order_and_the_end_comes_last(client: EngineClient, engine: ScriptedEngine) -> None:
    stream = client.submit([submit("a", [5, 6, 7])])
    assert events_of(stream) == [Delta("a", [5]), Delta("a", [6]), Delta("a", [7]), finished("a")]
    assert stream.unfinished == set()


def test_requests_that_belong_together_share_a_stream(client: EngineClient, engine: ScriptedEngine) -> None:
    events = events_of(client.submit([submit("a", [1]), submit("b", [2])]))
    assert [event for event in events if event.request_id == "b"] == [Delta("b", [2]), finished("b")]
    assert len(events) == 4


def test_a_request_arrives_as_it_was_sent(client: EngineClient, engine: ScriptedEngine) -> None:
    request = submit("a", [1, 2], temperature=0.5, logit_bias={3: -1.0}, stop=("x",), seed=-4)
    events_of(client.submit([request]))
    eventually(lambda: engine.messages == [request])


def test_log_probabilities_travel_along(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    stream = client.submit([submit("a")])
    eventually(lambda: engine.submitted)
    delta = Delta("a", [4], [TokenLogprob(4, -0.25, [(4, -0.25), (9, -3.0)])])
    engine.reply(Step(deltas=[delta], finished=[finished("a")]))
    assert events_of(stream) == [delta, finished("a")]


def test_asking_an_empty_stream_does_not_wait(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    assert client.submit([submit("a")]).get(0) is None


def test_events_of_nobody_are_dropped(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    stream = client.submit([submit("a")])
    eventually(lambda: engine.submitted)
    engine.reply(Step(deltas=[Delta("unknown", [1])], finished=[finished("unknown")]))
    engine.reply(Step(finished=[finished("a")]))
    engine.reply(Step(deltas=[Delta("a", [1])], finished=[finished("a")]))
    assert events_of(stream) == [finished("a")]


def test_state_progress_and_figures_reach_every_worker(engine: ScriptedEngine, client: EngineClient, socket_path: Path) -> None:
    other = EngineClient(socket_path)
    try:
        eventually(lambda: other.connected)
        engine.do(lambda server: server.broadcast(info(state="loading", progress=0.5)))
        engine.do(lambda server: server.broadcast(STATS))
        for each in (client, other):
            eventually(lambda each=each: each.stats == STATS)
            assert each.info == info(state="loading", progress=0.5)
    finally:
        other.close()


def test_a_worker_that_comes_late_is_told_the_last_state(engine: ScriptedEngine, socket_path: Path) -> None:
    engine.do(lambda server: server.broadcast(info(state="stopping")))
    late = EngineClient(socket_path)
    try:
        eventually(lambda: late.connected)
        assert late.info == info(state="stopping")
    finally:
        late.close()


@pytest.mark.parametrize("state", ["loading", "stopping", "failed"])
def test_nothing_is_sent_to_an_engine_that_is_not_ready(
    client: EngineClient, start_engine: Callable[..., ScriptedEngine], state: str
) -> None:
    engine = start_engine(state=state)
    eventually(lambda: client.connected)
    with pytest.raises(EngineUnavailable, match=f"the engine is {state}"):
        client.submit([submit("a")])
    assert engine.messages == []


def test_nothing_is_sent_where_there_is_no_engine(client: EngineClient) -> None:
    with pytest.raises(EngineUnavailable, match="not running"):
        client.submit([submit("a")])


def test_a_request_that_overtakes_the_news_is_refused_by_the_engine(
    start_engine: Callable[..., ScriptedEngine], connect: Callable[..., RawSocket]
) -> None:
    engine, worker = start_engine(state="loading"), connect()
    worker.send(encode(submit("early")))
    answer = worker.receive()
    assert isinstance(answer, Step)
    assert [(failed.request_id, failed.error.code) for failed in answer.failed] == [("early", "engine_unavailable")]
    assert engine.messages == []


def test_an_abort_names_what_has_not_ended(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    stream = client.submit([submit("a"), submit("b"), submit("c")])
    eventually(lambda: len(engine.submitted) == 3)
    engine.reply(Step(finished=[finished("b")]))
    assert stream.get(10) == finished("b")
    stream.abort(["b"])
    stream.abort(["a", "b"])
    stream.abort()
    eventually(lambda: len(engine.messages) == 5)
    assert [message for message in engine.messages if isinstance(message, Abort)] == [Abort(["a"]), Abort(["a", "c"])]


def test_an_aborted_request_still_gets_its_end(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    stream = client.submit([submit("a")])
    stream.abort()
    eventually(lambda: Abort(["a"]) in engine.messages)
    engine.reply(Step(finished=[finished("a", "abort")]))
    assert events_of(stream) == [finished("a", "abort")]


def test_many_threads_submit_at_once_and_each_gets_its_own(client: EngineClient, engine: ScriptedEngine) -> None:
    wrong: list[str] = []

    def work(thread: int) -> None:
        for turn in range(15):
            name, prompt = f"{thread}-{turn}", [thread, turn, thread * turn]
            events = events_of(client.submit([submit(name, prompt)]))
            if events != [*(Delta(name, [token]) for token in prompt), finished(name)]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    eventually(lambda: len(engine.submitted) == 12 * 15)


def test_thousands_of_frames_arrive_in_order(client: EngineClient, engine: ScriptedEngine) -> None:
    events = events_of(client.submit([submit("a", list(range(5000)))]))
    assert [event.token_ids[0] for event in events[:-1] if isinstance(event, Delta)] == list(range(5000))


def test_a_closed_client_ends_its_requests_and_takes_no_more(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    stream = client.submit([submit("a")])
    client.close()
    client.close()
    assert [type(event) for event in events_of(stream)] == [Failed]
    with pytest.raises(EngineUnavailable):
        client.submit([submit("b")])
    stream.abort(["a"])


def test_a_closed_engine_has_sent_what_was_queued(client: EngineClient, engine: ScriptedEngine) -> None:
    stream = client.submit([submit("a", list(range(3000)))])
    eventually(lambda: engine.submitted)
    engine.close()
    events = events_of(stream)
    assert (len(events), type(events[-1])) == (3001, Finished)


def test_requests_wait_in_order_of_arrival(client: EngineClient, engine: ScriptedEngine) -> None:
    for number in range(50):
        client.submit([submit(str(number))])
    eventually(lambda: engine.submitted == [str(number) for number in range(50)])
    assert all(isinstance(message, Submit) for message in engine.messages)

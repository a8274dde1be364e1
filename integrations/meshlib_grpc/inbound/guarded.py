"""One method of a server for threads, for whom the mesh lets in. All four kinds."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from meshlib.dataplane import context as inherited
from meshlib.errors import ControlError
from meshlib_grpc.inbound.arrival import AuthorityUnknown
from meshlib_grpc.inbound.contexts import ServedContext
from meshlib_grpc.inbound.judging import Arrived, Judge
from meshlib_grpc.inbound.refusal import NO_METHOD, STRANGER, Refusal, Status, no_policy
from meshlib_grpc.inbound.serving import Body, Serving

log = logging.getLogger(__name__)

BAD_REQUEST, BAD_RESPONSE = "Exception deserializing request!", "Failed to serialize response!"
"""gRPC's own words."""


def guarded(judge: Judge, method: str, handler: Any, *, told: bool = True) -> Any:
    """The handler, for whom the mesh lets in. `told`: the server can be told of responses (gRPC's
    `experimental_non_blocking`) and need not wait for them.
    """
    kind, make = kind_of(handler)
    run = getattr(handler, kind)
    found = Guarded(judge, method, run, handler.request_deserializer, handler.response_serializer)
    behaviour = functools.partial(getattr(found, kind))
    if told and handler.response_streaming and getattr(run, "experimental_non_blocking", False):
        behaviour = functools.partial(found.told, handler.request_streaming)
        behaviour.experimental_non_blocking = True  # type: ignore[attr-defined]
    pool = getattr(run, "experimental_thread_pool", None)
    if pool is not None:
        behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return make(behaviour)


def kind_of(handler: Any) -> tuple[str, Callable[[Any], Any]]:
    """The attribute that holds the handler's code, and what makes a handler of such code."""
    kind = "_".join(
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    )
    return kind, getattr(grpc, f"{kind}_rpc_method_handler")


class Guarded:
    """One method. Messages are bytes on gRPC's side."""

    def __init__(
        self, judge: Judge, method: str, run: Any = None, parse: Any = None, write: Any = None
    ) -> None:
        """`run` None: there is no such method. `parse` and `write`: of messages; None: they stay bytes."""
        self._judge = judge
        self._method = method
        self._run = run
        self._parse = parse
        self._write = write

    def unary_unary(self, message: bytes, context: Any) -> bytes | None:
        """Serves a call."""
        serving = self._let_in(context, message)
        served = ServedContext(context, serving)
        return self._one(lambda: self._parsed(message, served), serving, served)

    def stream_unary(self, messages: Iterator[bytes], context: Any) -> bytes | None:
        """Serves a call."""
        serving = self._let_in(context, None)
        served = ServedContext(context, serving)
        return self._one(lambda: self._requests(messages, served), serving, served)

    def unary_stream(self, message: bytes, context: Any) -> Iterator[bytes]:
        """Serves a call."""
        serving = self._let_in(context, message)
        served = ServedContext(context, serving)
        yield from self._many(lambda: self._parsed(message, served), serving, served)

    def stream_stream(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Serves a call."""
        serving = self._let_in(context, None)
        served = ServedContext(context, serving)
        yield from self._many(lambda: self._requests(messages, served), serving, served)

    def told(self, streams: bool, asked: Any, context: Any, send: Callable[[bytes | None], None]) -> None:
        """Serves a call whose handler tells `send` of each response, whenever it has one; None is the end."""
        serving = self._let_in(context, None if streams else asked)
        served, ended = ServedContext(context, serving), False

        def tell(response: Any) -> None:
            nonlocal ended
            ended = response is None
            served.begin()
            said = None if ended else self._said(response, served)
            serving.sent(said)
            send(said)

        context.add_callback(lambda: serving.end(left=not ended))
        with inherited.entered(serving.handed):
            self._run(self._requests(asked, served) if streams else self._parsed(asked, served), served, tell)

    def absent(self, messages: Iterator[bytes], context: Any) -> NoReturn:
        """Of a method that is not there."""
        serving = self._let_in(context, None)
        try:
            ServedContext(context, serving).abort(grpc.StatusCode.UNIMPLEMENTED, NO_METHOD)
        finally:
            serving.end()

    def _one(self, asked: Callable[[], Any], serving: Serving, served: ServedContext) -> bytes | None:
        failed = True
        try:
            with inherited.entered(serving.handed):
                said = self._written(self._run(asked(), served))
            if said is None:
                serving.coded(grpc.StatusCode.INTERNAL)
            served.begin()
            serving.sent(said)
            failed = False
        finally:
            if serving.watched is not None:
                serving.end(failed=failed, left=not served.is_active())
        return said

    def _many(self, asked: Callable[[], Any], serving: Serving, served: ServedContext) -> Iterator[bytes]:
        failed, left, responses = True, False, None
        try:
            with inherited.entered(serving.handed):
                responses = iter(self._run(asked(), served))
            while (said := self._next(responses, serving, served)) is not None:
                served.begin()
                serving.sent(said)
                yield said
            served.begin()
            failed = False
        except GeneratorExit:
            left = True
            raise
        finally:
            close = getattr(responses, "close", None)
            if close is not None:
                with inherited.entered(serving.handed):
                    close()
            if serving.watched is not None:
                serving.end(failed=failed, left=left or not served.is_active())

    def _next(self, responses: Iterator[Any], serving: Serving, served: ServedContext) -> bytes | None:
        """None: there are no more."""
        with inherited.entered(serving.handed):
            response = next(responses, None)  # gRPC takes None for the end, too
            if response is None:
                return None
            return self._said(response, served)

    def _said(self, response: Any, served: ServedContext) -> bytes:
        said = self._written(response)
        if said is None:
            served.abort(grpc.StatusCode.INTERNAL, BAD_RESPONSE)
        return said

    def _requests(self, messages: Iterator[bytes], served: ServedContext) -> "_Requests":
        return _Requests(messages, self._parsed, served)

    def _parsed(self, message: bytes, served: ServedContext) -> Any:
        served.serving.received(message)
        if self._parse is None:
            return message
        try:
            return self._parse(message)
        except Exception:
            log.exception(BAD_REQUEST)
            served.abort(grpc.StatusCode.INTERNAL, BAD_REQUEST)

    def _written(self, response: Any) -> bytes | None:
        """None, which gRPC answers with INTERNAL: it can't be written."""
        if self._write is None:
            return response  # type: ignore[no-any-return]
        try:
            return self._write(response)  # type: ignore[no-any-return]
        except Exception:
            log.exception(BAD_RESPONSE)
            return None

    def _let_in(self, context: Any, message: bytes | None) -> Serving:
        """Who may not come in is told so, by gRPC's exception. `message` None: they are a stream."""
        found = self._judge.gate(context)
        if found is None:
            _refuse(context, STRANGER)
        gate, peer = found
        try:
            gate.prepare()
        except ControlError as error:
            _refuse(context, no_policy(error))
        arrived = Arrived(gate, peer, self._method, context)
        try:
            verdict = gate.admit(arrived.head, arrived.peer, Body(message).read)
        except AuthorityUnknown as error:
            verdict = self._judge.unknown_host(error)
        judged = arrived.judged(verdict)
        if isinstance(judged, Refusal):
            _refuse(context, judged.status)
        return judged


def _refuse(context: Any, status: Status) -> NoReturn:
    if status.trailing:
        context.set_trailing_metadata(status.trailing)
    context.abort(status.code, status.details)
    raise AssertionError("gRPC goes on after abort")


class _Requests:
    """The messages of a call, as the application reads them."""

    def __init__(
        self,
        messages: Iterator[bytes],
        parse: Callable[[bytes, ServedContext], Any],
        served: ServedContext,
    ) -> None:
        self._messages = messages
        self._parse = parse
        self._served = served

    def __iter__(self) -> "_Requests":
        return self

    def __next__(self) -> Any:
        return self._parse(next(self._messages), self._served)

"""pygls's protocol, mended where a client would wait for ever or read our tracebacks.

Every request gets exactly one answer, malformed ones and those at the wrong time included; errors
carry a message and no data; a cancelled command is cancelled. It knows nothing of what the server
does; `transport.py` feeds it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TextIO

from lsprotocol import types
from pygls.exceptions import (
    JsonRpcException,
    JsonRpcInternalError,
    JsonRpcInvalidParams,
    JsonRpcInvalidRequest,
    JsonRpcParseError,
    JsonRpcRequestCancelled,
    JsonRpcServerNotInitialized,
)
from pygls.protocol import JsonRPCNotification, JsonRPCRequestMessage, LanguageServerProtocol
from pygls.protocol import lsp_method as builtin_feature
from pygls.protocol.json_rpc import JsonRPCResponseMessage, MsgId, RPCMessage

from .document import DocumentNotOpen, ExactWorkspace

if TYPE_CHECKING:
    from pygls.protocol.json_rpc import MessageCallback, MessageHandler

logger = logging.getLogger(__name__)


class RequestFailed(JsonRpcException):
    """A well-formed request that could not be done; the message is for the user."""

    CODE = types.LSPErrorCodes.RequestFailed.value
    MESSAGE = "Request failed"


class ExactProtocol(LanguageServerProtocol):
    """The server's end of the conversation.

    Attributes:
        exit_code: None until the client sent `exit`.
        trace_file: where every message is written, one a line with its time and direction; None for
            nowhere.
    """

    exit_code: int | None = None
    trace_file: TextIO | None = None

    def receive(self, body: bytes) -> None:
        """Take one message as it came off the wire."""
        self._trace("from client", body.decode("utf-8", "replace"))
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            logger.warning("a message of %d bytes is not JSON", len(body))
            self._refuse(None, JsonRpcParseError("the message is not JSON"))
            return
        if not isinstance(data, dict) or data.get("jsonrpc") != self.VERSION:
            msg_id = _id_of(data) if isinstance(data, dict) and "method" in data else None
            self._refuse(msg_id, JsonRpcInvalidRequest('not a JSON-RPC 2.0 message ("jsonrpc")'))
            return
        message = self._to_message(data)
        if message is not None and self._is_timely(message):
            self.handle_message(message)

    def _send_data(self, data: Any) -> None:
        if self.trace_file is not None:
            body = json.dumps(data, default=self._serialize_message)
            self._trace("to client", body)
        super()._send_data(data)

    def _trace(self, direction: str, body: str) -> None:
        if self.trace_file is not None:
            now = time.strftime("%H:%M:%S")
            self.trace_file.write(f"{now} {direction} {body}\n")
            self.trace_file.flush()

    def _to_message(self, data: dict[str, Any]) -> RPCMessage | None:
        """The typed message; None, with an answer sent where one is due, if it cannot be read."""
        method = data.get("method")
        is_request = method is not None and "id" in data
        msg_id = _id_of(data)
        if (method is not None and not isinstance(method, str)) or (is_request and msg_id is None):
            self._refuse(msg_id, JsonRpcInvalidRequest("method or id has the wrong type"))
            return None
        try:
            message: RPCMessage = self._converter.structure(data, self._message_type(data))
        except Exception as error:  # cattrs raises groups, and whatever a hook raises
            logger.warning("cannot read the parameters of %s (%s)", method, type(error).__name__)
            if is_request:
                self._refuse(msg_id, JsonRpcInvalidParams(f"invalid parameters for {method}"))
            elif method is None and msg_id is not None:
                self._handle_response(
                    msg_id, None, types.ResponseError(-32603, "unreadable answer")
                )
            return None
        if is_request and getattr(message, "id", None) is None:
            self._refuse(
                msg_id, JsonRpcInvalidRequest(f"{method} is a notification, not a request")
            )
            return None
        return message

    def _message_type(self, data: dict[str, Any]) -> type[Any]:
        if "method" in data:
            data.setdefault("params", None)
            fallback = JsonRPCRequestMessage if "id" in data else JsonRPCNotification
            return self.get_message_type(data["method"]) or fallback
        result_type = self._result_types.pop(data.get("id"), None)  # type: ignore[arg-type]
        if "error" in data:
            return types.ResponseErrorMessage
        return result_type or JsonRPCResponseMessage

    def _is_timely(self, message: RPCMessage) -> bool:
        """Whether it is time for this message; a request at the wrong time is answered."""
        method, msg_id = getattr(message, "method", None), getattr(message, "id", None)
        if method is None:
            return True
        is_first, has_begun = method == types.INITIALIZE, self._workspace is not None
        if msg_id is None:
            return has_begun or method == types.EXIT
        if self._shutdown:
            self._refuse(msg_id, JsonRpcInvalidRequest(f"{method} after shutdown"))
        elif is_first and has_begun:
            self._refuse(msg_id, JsonRpcInvalidRequest("initialize was sent before"))
        elif not is_first and not has_begun:
            self._refuse(msg_id, JsonRpcServerNotInitialized(f"{method} before initialize"))
        else:
            return True
        return False

    def _refuse(self, msg_id: MsgId | None, error: JsonRpcException) -> None:
        answer = {"code": error.code, "message": error.message}
        self._send_data({"jsonrpc": self.VERSION, "id": msg_id, "error": answer})

    def _execute_handler(
        self,
        msg_id: MsgId,
        handler: MessageHandler,
        callback: MessageCallback,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """As pygls does, but forget notifications too: it keeps a future of every didChange."""
        super()._execute_handler(msg_id, handler, callback, args, kwargs)
        if (future := self._request_futures.get(msg_id)) is not None:
            future.add_done_callback(lambda _: self._request_futures.pop(msg_id, None))

    def _send_handler_result(self, future: Future[Any], *, msg_id: MsgId) -> None:
        """Answer a request with its handler's outcome."""
        self._request_futures.pop(msg_id, None)
        if future.cancelled():
            self._refuse(msg_id, JsonRpcRequestCancelled("the request was cancelled"))
            return
        error = future.exception()
        if error is None:
            self._send_response(msg_id, result=future.result())
        elif isinstance(error, JsonRpcException):
            self._refuse(msg_id, error)
        elif isinstance(error, DocumentNotOpen):
            self._refuse(msg_id, JsonRpcInvalidParams(str(error)))
        else:
            logger.error("a request failed", exc_info=error)
            self._refuse(msg_id, JsonRpcInternalError("internal error; the server's log has more"))

    def _handle_response(
        self, msg_id: MsgId, result: Any = None, error: types.ResponseError | None = None
    ) -> None:
        """Take the client's answer, unless what asked for it has been cancelled meanwhile."""
        asked = self._request_futures.get(msg_id)
        if not isinstance(asked, Future):
            logger.warning("an answer to no request of ours")
        elif asked.done():
            del self._request_futures[msg_id]
        else:
            super()._handle_response(msg_id, result, error)

    @builtin_feature(types.INITIALIZE)
    def lsp_initialize(
        self, params: types.InitializeParams
    ) -> Generator[Any, Any, types.InitializeResult]:
        """As pygls does, with our documents and without a provider of no commands."""
        result = yield from super().lsp_initialize(params)
        made = self.workspace
        self._workspace = ExactWorkspace(
            made.root_uri,
            types.TextDocumentSyncKind.Incremental,
            list(made.folders.values()),
            made.position_encoding or types.PositionEncodingKind.Utf16,
        )
        if not self.fm.commands:
            result.capabilities.execute_command_provider = None
        return result

    @builtin_feature(types.SHUTDOWN)
    def lsp_shutdown(self, *args: Any) -> None:  # type: ignore[override]  # a plain handler will do
        """Cancel what is running; pygls changes the dictionary it walks over here."""
        self._shutdown = True
        for future in tuple(self._request_futures.values()):
            future.cancel()

    @builtin_feature(types.EXIT)
    def lsp_exit(self, *args: Any) -> None:  # type: ignore[override]  # as above
        """Let the transport end; pygls would raise SystemExit in the middle of its loop."""
        self.exit_code = 0 if self._shutdown else 1

    @builtin_feature(types.WORKSPACE_EXECUTE_COMMAND)
    async def lsp_workspace__execute_command(  # type: ignore[override]  # as above
        self, params: types.ExecuteCommandParams
    ) -> Any:
        """Await the command itself, so that cancelling the request reaches it."""
        if (command := self.fm.commands.get(params.command)) is None:
            raise JsonRpcInvalidParams(f"no such command: {params.command!r}")
        return await command(params)

    async def cancel_requests(self) -> None:
        """Cancel every request that is still being worked on, and see its answer sent."""
        futures: list[object] = list(self._request_futures.values())
        tasks = [future for future in futures if isinstance(future, asyncio.Task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # their done callbacks write the answers


def _id_of(data: dict[str, Any]) -> MsgId | None:
    msg_id = data.get("id")
    return msg_id if isinstance(msg_id, int | str) and not isinstance(msg_id, bool) else None

"""`node-agent gpu-reader`: prints the GPUs' figures as a line of JSON every few seconds, as NVML gives them.

A process of its own, because a call into a driver that hangs never returns, and one into a driver that is broken may
end the caller. Source: NVIDIA Management Library, API reference; structures and numbers as in its `nvml.h`.

Each line: `{"at": monotonic seconds of this machine, "gpus": [figures as in a heartbeat]}`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

from skyfleet.agent.logs import log, now_iso
from skyfleet.agent.processes import die_with_parent

LIBRARY = "libnvidia-ml.so.1"
ENDED, NO_DRIVER = 0, 1

_SUCCESS, _NOT_SUPPORTED, _NO_PERMISSION, _TIMEOUT, _FUNCTION_NOT_FOUND = 0, 3, 4, 10, 13
#: What a GPU, its mode or its driver's age cannot tell is nothing wrong with it.
_NOT_SAID = (_NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND)
_TEMPERATURE_GPU = 0
_UNCORRECTED, _SINCE_DRIVER_LOAD = 1, 0
_EVENT_XID_CRITICAL = 0x8
_NAME_BYTES = 96
_BYTES_PER_GB = 1e9
_MAX_PROBLEM_CHARS = 300
_NO_TEMPERATURE = 1000  # -1, as an unsigned number, is what some drivers say for "unknown"


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", c_uint), ("memory", c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class _EventData(ctypes.Structure):
    _fields_ = [
        ("device", c_void_p),
        ("type", c_ulonglong),
        ("data", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    ]


#: The functions that are called, with their arguments; each returns a status.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "nvmlInit_v2": (),
    "nvmlDeviceGetCount_v2": (POINTER(c_uint),),
    "nvmlDeviceGetHandleByIndex_v2": (c_uint, POINTER(c_void_p)),
    "nvmlDeviceGetName": (c_void_p, c_char_p, c_uint),
    "nvmlDeviceGetUtilizationRates": (c_void_p, POINTER(_Utilization)),
    "nvmlDeviceGetMemoryInfo": (c_void_p, POINTER(_Memory)),
    "nvmlDeviceGetTemperature": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetTotalEccErrors": (c_void_p, c_int, c_int, POINTER(c_ulonglong)),
    "nvmlEventSetCreate": (POINTER(c_void_p),),
    "nvmlDeviceRegisterEvents": (c_void_p, c_ulonglong, c_void_p),
    "nvmlEventSetWait_v2": (c_void_p, POINTER(_EventData), c_uint),
}


class NvmlError(Exception):
    """NVML refused; holds its status."""

    def __init__(self, function: str, status: int, text: str) -> None:
        super().__init__(f"{function}: {text}")
        self.status = status


class Nvml:
    """The library, initialised. Raises OSError without the library, `NvmlError` without a driver."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._call("nvmlInit_v2")
        self._xids: dict[int, tuple[int, str]] = {}  # by the device's handle: the last error, and when it was seen
        self._events = self._listen()

    def read(self) -> list[dict[str, Any]]:
        """The figures of each GPU. Raises `NvmlError`."""
        return [self._gpu(index) for index in range(self._count())]

    def wait(self, seconds: float) -> None:
        """Let that much time pass, and take down the XID errors that come meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._events is None:
                time.sleep(left)
                continue
            event = _EventData()
            try:
                self._call("nvmlEventSetWait_v2", self._events, byref(event), max(1, int(left * 1000)))
            except NvmlError as error:
                if error.status != _TIMEOUT:
                    log("gpus.no_more_events", level="warning", reason=error)
                    self._events = None
                continue
            if event.type == _EVENT_XID_CRITICAL:
                log("gpus.xid", level="error", xid=event.data)
                self._xids[event.device or 0] = (event.data, now_iso())

    def _gpu(self, index: int) -> dict[str, Any]:
        figures: dict[str, Any] = {"index": index}
        problem: NvmlError | None = None
        try:
            device = self._device(index)
        except NvmlError as error:
            return {**figures, "problem": str(error)[:_MAX_PROBLEM_CHARS]}

        def say(function: str, *arguments: Any) -> bool:
            nonlocal problem
            try:
                self._call(function, device, *arguments)
            except NvmlError as error:
                if error.status not in _NOT_SAID:
                    problem = problem or error
                return False
            return True

        name = ctypes.create_string_buffer(_NAME_BYTES)
        if say("nvmlDeviceGetName", name, _NAME_BYTES):
            figures["name"] = name.value.decode("utf-8", "replace")
        utilization, memory, degrees, ecc = _Utilization(), _Memory(), c_uint(), c_ulonglong()
        if say("nvmlDeviceGetUtilizationRates", byref(utilization)):
            figures["utilization"] = utilization.gpu
        if say("nvmlDeviceGetMemoryInfo", byref(memory)):
            figures["memory_used_gb"] = round(memory.used / _BYTES_PER_GB, 3)
            figures["memory_total_gb"] = round(memory.total / _BYTES_PER_GB, 3)
        if say("nvmlDeviceGetTemperature", _TEMPERATURE_GPU, byref(degrees)) and degrees.value < _NO_TEMPERATURE:
            figures["temperature_c"] = degrees.value
        if say("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _SINCE_DRIVER_LOAD, byref(ecc)):
            figures["ecc_uncorrected_errors"] = ecc.value
        if device.value in self._xids:
            figures["last_xid"], figures["last_xid_at"] = self._xids[device.value]
        if problem is not None:
            figures["problem"] = str(problem)[:_MAX_PROBLEM_CHARS]
        return figures

    def _listen(self) -> c_void_p | None:
        """An event set that XID errors of all GPUs come to; None where there are none to be had."""
        events = c_void_p()
        heard = 0
        try:
            self._call("nvmlEventSetCreate", byref(events))
        except NvmlError as error:
            log("gpus.no_events", reason=error)
            return None
        for index in range(self._count()):
            try:
                self._call("nvmlDeviceRegisterEvents", self._device(index), _EVENT_XID_CRITICAL, events)
                heard += 1
            except NvmlError as error:
                log("gpus.no_events", index=index, reason=error)
        return events if heard else None

    def _count(self) -> int:
        count = c_uint()
        self._call("nvmlDeviceGetCount_v2", byref(count))
        return count.value

    def _device(self, index: int) -> c_void_p:
        device = c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", index, byref(device))
        return device

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(name, _FUNCTION_NOT_FOUND, "not in this version of the library") from None
        function.argtypes, function.restype = _FUNCTIONS[name], c_int
        status = function(*arguments)
        if status != _SUCCESS:
            raise NvmlError(name, status, self._text(status))

    def _text(self, status: int) -> str:
        self._library.nvmlErrorString.restype = c_char_p
        said = self._library.nvmlErrorString(c_int(status))
        return said.decode("utf-8", "replace") if said else f"status {status}"


def main(argv: Sequence[str]) -> int:
    """Print figures until the agent is gone; 1 when there is no driver to ask."""
    parser = argparse.ArgumentParser(prog="gpu-reader")
    parser.add_argument("--every-s", type=float, required=True)
    parser.add_argument("--parent", type=int, required=True, help="the agent's process id")
    options = parser.parse_args(argv)
    die_with_parent()
    if os.getppid() != options.parent:
        return ENDED  # it ended before the kernel was told to tie the two together
    try:
        nvml = Nvml()
        while True:
            print(json.dumps({"at": time.monotonic(), "gpus": nvml.read()}), flush=True)
            nvml.wait(options.every_s)
    except (OSError, NvmlError) as error:
        log("gpus.unreadable", level="warning", reason=error)
        return NO_DRIVER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

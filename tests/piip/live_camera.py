"""A camera for tests: Motion JPEG over HTTP on this machine, of frames that tell their number."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np


def numbered(number: int) -> np.ndarray:
    """A frame that tells its number after lossy compression too."""
    return np.full((48, 64, 3), 10 * number, np.uint8)


def number_of(image: np.ndarray) -> int:
    """The number of such a frame."""
    return round(image.mean() / 10)


@contextmanager
def running_camera(silent_after: int = 20, connections: int = 1000) -> Iterator[str]:
    """The address of a camera (Motion JPEG over HTTP) that sends 20 frames, one each 20 ms.

    Fewer, and it stays silent then for 2 seconds; it sends nothing to connections beyond a number.
    """
    opened: list[int] = []

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            opened.append(1)
            if len(opened) > connections:
                time.sleep(2)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for number in range(silent_after):
                jpeg = cv2.imencode(".jpg", numbered(number))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                self.wfile.flush()
                time.sleep(0.02)
            time.sleep(2 if silent_after < 20 else 0)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live.mjpg"
    server.shutdown()
    server.server_close()

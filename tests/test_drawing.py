"""One thread at a time changes or draws a figure; what it calls back runs after that."""

import io
import threading

import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent
from PIL import Image

from toolkit.widgets.panels.figure import Picture, png
from toolkit.widgets.panels.panel import Quiet

DRAW = {"type": "draw"}


@pytest.fixture
def picture():
    picture = Picture(200, 100)
    if not picture.live:
        pytest.skip("ipympl is not installed")
    picture.figure.subplots().plot([0, 1])
    picture.figure.canvas.draw()  # the first drawing looks for fonts, and takes long
    yield picture
    picture.widget.close()


def in_thread(call, *args) -> threading.Thread:
    thread = threading.Thread(target=call, args=args, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "draw",
    [
        lambda p: p.figure.canvas._handle_message(p.widget, DRAW, []),
        lambda p: p.figure.canvas.draw(),
        lambda p: p.move(p.figure.axes[0].lines),
        lambda p: p.redraw(),
        lambda p: png(p.figure, 50),
    ],
    ids=["browser", "draw", "move", "redraw", "still"],
)
def test_no_other_thread_draws_while_a_figure_is_changed(picture, draw):
    """Without the lock the browser kept a half-made figure: the last frame was sent too early."""
    with picture.changing():
        thread = in_thread(draw, picture)
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(600)
    assert not thread.is_alive()


def test_a_figure_is_not_changed_while_another_thread_draws_it(picture):
    drawing, go_on, changed = threading.Event(), threading.Event(), threading.Event()
    picture.figure.canvas.mpl_connect("draw_event", lambda _: (drawing.set(), go_on.wait(600)))

    def change():
        with picture.changing():
            changed.set()

    browser = in_thread(picture.figure.canvas._handle_message, picture.widget, DRAW, [])
    assert drawing.wait(600)
    other = in_thread(change)
    assert not changed.wait(0.3)
    go_on.set()
    browser.join(600)
    other.join(600)
    assert changed.is_set()


def test_every_frame_is_whole(picture, monkeypatch):
    """The browser drops a frame when the next one is faster: differences would add up wrongly."""
    frames, canvas = [], picture.figure.canvas
    monkeypatch.setattr(canvas, "send_binary", frames.append)
    for _ in range(3):
        canvas._handle_message(picture.widget, DRAW, [])
        picture.figure.axes[0].set_title("another")
    alphas = [np.asarray(Image.open(io.BytesIO(frame)).convert("RGBA"))[..., 3] for frame in frames]
    assert len(frames) == 3 and all((alpha == 255).all() for alpha in alphas)


def test_a_click_calls_back_when_the_figure_is_free_again(picture):
    """A callback measures, and waits for the model: under the lock that could wait for ever."""
    free = []

    def clicked(event):
        thread = in_thread(picture.redraw)
        thread.join(600)
        free.append(not thread.is_alive())

    picture.connect("button_press_event", clicked)
    press = {"type": "button_press", "x": 50, "y": 50, "button": 0, "buttons": 1, "modifiers": []}
    canvas = picture.figure.canvas
    canvas._handle_message(picture.widget, press, [])
    assert free == [True]
    canvas.callbacks.process(
        "button_press_event", MouseEvent("button_press_event", canvas, 50, 50, 1)
    )
    assert free == [True, True]


def test_quiet_is_of_one_thread():
    """A view that sets its own widgets must not swallow a click that comes at the same moment."""
    quiet, elsewhere = Quiet(), []
    with quiet:
        with quiet:
            in_thread(lambda: elsewhere.append(bool(quiet))).join(600)
        assert quiet
    assert not quiet and elsewhere == [False]

"""The page of ``detrs serve`` in a browser, for its tests."""

import base64
from pathlib import Path
from typing import Any, NamedTuple

DROP = """([files, how]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
    }
    const options = { bubbles: true, cancelable: true };
    const event = how === "drop" ? new DragEvent("drop", { dataTransfer: transfer, ...options })
                                 : new ClipboardEvent("paste", { clipboardData: transfer, ...options });
    document.body.dispatchEvent(event);
}"""


class Opened(NamedTuple):
    """The page in the browser, and the requests that its server received."""

    page: Any
    requests: list[tuple[str, str]]
    """(path with query, name of the file)."""

    def give(self, *files: tuple[str, bytes], how: str = "drop") -> None:
        known = self.page.locator("#image-list li").count()
        encoded = [[name, base64.b64encode(content).decode()] for name, content in files]
        self.page.evaluate(DROP, [encoded, how])
        self.page.wait_for_selector(f"#image-list li:nth-child({known + len(files)})", state="attached")
        self.page.wait_for_selector("#images[aria-busy=false]", state="attached", timeout=30_000)

    def drop(self, path: Path, num_images: int) -> None:
        """Drop a file or a folder of the file system, as a file manager does."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        session = self.page.context.new_cdp_session(self.page)
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
        self.page.wait_for_selector(f"#image-list li:nth-child({num_images})", state="attached")
        self.page.wait_for_selector("#images[aria-busy=false]", state="attached", timeout=30_000)

    def state(self, expression: str) -> Any:
        return self.page.evaluate(f"detrs.{expression}")

    def rows(self) -> list[list[str]]:
        rows = self.page.locator("#rows tr").all()
        return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in rows]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the image is in the window."""
        box = self.page.locator("#canvas").bounding_box()
        frame = self.page.evaluate("(({x, y, scale}) => ({x, y, scale}))(detrs.frame())")
        return box["x"] + frame["x"] + frame["scale"] * x, box["y"] + frame["y"] + frame["scale"] * y

    def color(self, x: float, y: float) -> str:
        """Color on the canvas at a pixel of the image."""
        return self.page.evaluate(
            """([x, y]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const f = detrs.frame();
                const at = [Math.round(f.x + x * f.scale), Math.round(f.y + y * f.scale), 1, 1];
                const rgb = document.getElementById("canvas").getContext("2d").getImageData(...at).data.slice(0, 3);
                done("#" + [...rgb].map((value) => value.toString(16).padStart(2, "0")).join(""));
            })))""",
            [x, y],
        )

// The common beginning of all scripts: repeats the updates of a page, until the user pauses them.
"use strict";
// Call `update` now, and again `intervalMs` after each call ends, unless the page is hidden or paused.
function repeat(update, intervalMs) {
  const pause = document.getElementById("pause");
  const isPaused = () => pause.getAttribute("aria-pressed") === "true";
  let timer = 0;
  let isRunning = false;

  async function run() {
    clearTimeout(timer);
    if (isRunning || document.hidden || isPaused()) return;
    isRunning = true;
    try {
      await update();
    } finally {
      isRunning = false;
      timer = setTimeout(run, intervalMs);
    }
  }

  document.addEventListener("visibilitychange", run);
  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = !isPaused();
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    run();
  });
  run();
}

// The script of pages that show a snapshot: requests the page again, and replaces its content. This is
// safe: the server escapes all data, and browsers do not run scripts in text from DOMParser.
(() => {
  const INTERVAL_MS = 30000;
  const TIMEOUT_MS = 15000;

  const stale = document.getElementById("stale");
  const style = (page) => page.querySelector("style").textContent;
  let seenAt = new Date();

  function show(page) {
    const main = document.querySelector("main"), next = page.querySelector("main");
    if (!next) throw new Error("the response is another page");
    if (style(page) !== style(document)) {
      // The server now runs another version of skyfast.
      location.reload();
      return;
    }
    // A replaced element would lose the focus or the selection.
    if (main.contains(document.activeElement) || !document.getSelection().isCollapsed) return;
    for (const list of main.querySelectorAll("details[open]")) {
      const same = next.querySelector(`[data-open="${CSS.escape(list.dataset.open)}"]`);
      if (same) same.open = true;
    }
    main.replaceWith(document.adoptNode(next));
  }

  async function refresh() {
    if (new Date() - seenAt < INTERVAL_MS) return;
    try {
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      const response = await fetch(location.href, { signal, cache: "no-store" });
      // Status 503: another client's report is in progress.
      if (response.status === 503) return;
      if (!response.ok) throw new Error(response.status);
      show(new DOMParser().parseFromString(await response.text(), "text/html"));
      seenAt = new Date();
      stale.hidden = true;
    } catch (error) {
      console.debug(error);
      stale.textContent = `No response from skyfast since ${seenAt.toTimeString().slice(0, 8)}:`
        + " this page shows the state at that time.";
      stale.hidden = false;
    }
  }

  repeat(refresh, INTERVAL_MS);
})();

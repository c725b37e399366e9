
// The script of the status page: updates the elements with data-key, data-rows and data-series from
// api/status and api/top. The page defines the elements; status_html.py implements the same formats.
// Data from the network is always inserted as text, never as HTML.
(() => {
  const INTERVAL_MS = 5000;
  const TIMEOUT_MS = 15000;
  const TYPING_MS = 300;
  const MAX_TIMESTAMP_S = 2 ** 33;
  const MAX_FILTER_CHARS = 200, MAX_POINTS = 3, MIN_BAR_PERCENT = 1;
  const NOTHING = "–";
  const WIDTH = 600, HEIGHT = 40, SPAN_S = 600, MAX_GAP_S = 10;
  const BUSY = "Too many rankings are in progress: try again.";

  const NEARLY_FULL = 0.9;
  const REASONS = {
    late: "repeated",
    no_network: "ARP",
    no_transport: "ICMP",
    duplicate: "at another interface",
    other_shard: "of other shards",
    no_uuid: "without UUID",
    no_metric: "without metrics",
    out_of_range: "out of range",
    text_too_long: "text too long",
    table_full: "table full",
  };

  const all = (selector) => document.querySelectorAll(selector);
  const one = (id) => document.getElementById(id);
  const at = (tree, key) => key.split(".").reduce((part, name) => part[name], tree);

  function short(number, unit, prefixes) {
    let step = 0;
    while (number >= 1000 && step < prefixes.length - 1) {
      number /= 1000;
      step += 1;
    }
    const whole = number >= 100 || (step === 0 && Number.isInteger(number));
    const digits = whole ? 0 : number >= 10 ? 1 : 2;
    return `${number.toFixed(digits)} ${prefixes[step].trim()}${unit}`.trim();
  }
  const count = (value) => Math.trunc(value).toLocaleString("en-US");
  const plain = (value) => value >= 1000 ? count(value) : short(value, "", " ");
  const tenths = (value) => value >= 1000 ? count(value) : value.toFixed(1);
  const bytes = (value) => short(value, "B", " kMGTPE");
  const seconds = (value) => {
    if (value >= 1) return short(value, "s", " ");
    return value ? short(value * 1e9, "s", "nµm ") : "0 s";
  };
  const timestamp = (value) => value > MAX_TIMESTAMP_S ? count(value)
    : new Date(Math.trunc(value) * 1000).toISOString().slice(0, 19).replace("T", " ");
  const duration = (value) => {
    const s = Math.max(Math.trunc(value), 0);
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.trunc(s / 60)} min`;
    if (s < 86400) return `${Math.trunc(s / 3600)} h ${Math.trunc(s % 3600 / 60)} min`;
    return `${Math.trunc(s / 86400)} d ${Math.trunc(s % 86400 / 3600)} h`;
  };
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const error = (value, now) =>
    `${value.text} (${duration(now - value.timestamp_seconds)} ago)`;
  const reload = (value, now) => value.successes_total
    ? `last reloaded ${duration(now - value.last_success_timestamp_seconds)} ago,`
      + ` changed keys: ${value.changed.join(", ") || NOTHING}`
    : `loaded at the start, ${duration(now - value.last_success_timestamp_seconds)} ago;`
      + " never reloaded";
  const point = (value) => value.name || value.node_tid;
  const fullPoint = (value) => value.name ? `${value.node_tid} (${value.name})` : value.node_tid;
  const points = (value) => value.slice(0, MAX_POINTS).map(point).join(", ")
    + (value.length > MAX_POINTS ? ` and ${value.length - MAX_POINTS} more` : "");
  const FORMATS = {
    text: (value) => String(value),
    state: (value) => value ? "up" : "down",
    health: (value) => `${value.state}: ${value.text}`,
    count, number: plain, tenths, bytes, seconds,
    nanoseconds: (value) => seconds(value / 1e9),
    timestamp, duration,
    since: (value, now) => duration(now - value),
    ago: (value, now) => `${duration(now - value)} ago`,
    error,
    "last-error": (value, now) => `, last error: ${error(value, now)}`,
    reload,
    "reload-state": (value) => value.successful ? "loaded" : "last reload failed",
    list: (value) => value.join(", "),
    points,
    reasons: (value) => Object.entries(value)
      .map(([name, n]) => `${REASONS[name] ?? name} ${count(n)}`).join(", "),
    hidden: (value) => value ? "hidden" : "exported",
    percent,
    expired: (value) =>
      `${count(value.expired_series_at_most)} in ${duration(value.window_seconds)}`,
    "memory-range": (value) =>
      `${bytes(value.memory_bytes_low)} to ${bytes(value.memory_bytes_high)}`,
    "bytes-rate": (value) => `${bytes(value)}/s`,
    "number-rate": (value) => `${plain(value)}/s`,
  };
  const STATES = ["state", "health", "reload-state"];
  const COLOURS = { ready: "good", degraded: "warn", "not ready": "bad" };
  const TEXTS = [...STATES, "text", "error", "last-error", "reload", "list", "points",
    "reasons", "hidden"];
  const isNothing = (value) => value === null || value === ""
    || (typeof value === "object" && !Object.keys(value).length);
  const formatted = (value, format, now) => {
    if (isNothing(value)) return format === "last-error" ? "" : NOTHING;
    return FORMATS[format](value, now);
  };
  const classOf = (value, format) => {
    if (format === "health") return `state ${COLOURS[value.state]}`;
    if (format === "reload-state") return `state ${value.successful ? "good" : "bad"}`;
    if (format === "state") return `state ${value ? "good" : "bad"}`;
    return TEXTS.includes(format) ? format : "number";
  };

  // Update changed text only, to preserve selection and focus and not to disturb screen readers.
  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function bar(share) {
    const make = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
    const svg = make("svg"), rect = make("rect");
    svg.setAttribute("aria-hidden", "true");
    rect.setAttribute("height", "100%");
    const percent = 100 * Math.min(Math.max(share, 0), 1);
    const width = percent ? Math.max(percent, MIN_BAR_PERCENT) : 0;
    rect.setAttribute("width", `${width.toFixed(1)}%`);
    svg.append(rect);
    return svg;
  }

  function fillCell(cell, head, row, now) {
    const { key, format, name: label, beside, bar: length, filters, configured } = head.dataset;
    const value = at(row, key), mark = configured === String(value) ? " (configured)" : "";
    const text = formatted(value, format, now) + mark;
    cell.className = classOf(value, format);
    if (length !== undefined) {
      const span = document.createElement("span");
      span.textContent = text;
      cell.classList.add("share");
      cell.replaceChildren(bar(at(row, length) ?? 0), span);
      return;
    }
    const name = label !== undefined && row.names[label] || "";
    if (beside !== undefined) cell.classList.add("named");
    const shown = name && beside === undefined ? name : text;
    const more = name && beside !== undefined ? name : "";
    if (filters !== undefined && value) writeLink(cell, value, shown, more);
    else write(cell, shown);
    if (format === "text") cell.title = name ? `${text} (${name})` : text;
    if (format === "points") cell.title = value.map(fullPoint).join("\n");
  }

  // A link that filters by the value, and a name beside it.
  function writeLink(cell, value, shown, name) {
    const whole = name ? `${shown} ${name}` : shown;
    const old = cell.firstElementChild;
    if (cell.textContent === whole && old && old.dataset.filter === value) return;
    const link = document.createElement("a");
    link.dataset.filter = value;
    link.textContent = shown;
    const parameters = new URLSearchParams(wanted());
    parameters.set("filter", value.slice(0, MAX_FILTER_CHARS));
    link.href = `?${parameters}`;
    cell.replaceChildren(link);
    if (!name) return;
    const small = document.createElement("small");
    small.textContent = name;
    cell.append(" ", small);
  }

  function fillLimit(svg, status) {
    const limit = at(status, svg.dataset.limit);
    const shares = svg.dataset.shares.split(" ").map((key) => limit ? at(status, key) / limit : 0);
    let start = 0;
    shares.forEach((share, i) => {
      const width = Math.min(share, 1 - start), rect = svg.children[i];
      rect.setAttribute("x", `${(100 * start).toFixed(1)}%`);
      rect.setAttribute("width", `${(100 * width).toFixed(1)}%`);
      start += width;
    });
    const used = shares[0];
    svg.setAttribute("class", used >= 1 ? "bad" : used >= NEARLY_FULL ? "warn" : "good");
  }

  function fillTable(table, rows, now) {
    const heads = table.tHead.rows[0].cells, body = table.tBodies[0];
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((row, i) => {
      const line = body.rows[i] || body.insertRow();
      for (let j = 0; j < heads.length; j += 1) {
        const cell = line.cells[j] || line.insertCell();
        fillCell(cell, heads[j], row, now);
        cell.hidden = heads[j].hidden;
      }
    });
    table.parentElement.hidden = !rows.length;
  }

  const xOf = (age) => Math.max(WIDTH - age * WIDTH / SPAN_S, 0).toFixed(1);

  function draw(svg, ages, values) {
    const known = values.filter((value) => value !== null);
    const highest = Math.max(0, ...known) || 1;
    const runs = [];
    let before = Infinity;
    values.forEach((value, i) => {
      if (value === null) return;
      // Interrupt the line if the process was paused.
      if (before - ages[i] > MAX_GAP_S) runs.push([]);
      before = ages[i];
      runs.at(-1).push([xOf(ages[i]), (HEIGHT - value * HEIGHT / highest).toFixed(1)]);
    });
    const [gaps, area, line] = svg.children;
    gaps.setAttribute("d", ages.slice(1).map((age, i) => ages[i] - age > MAX_GAP_S
      ? `M${xOf(ages[i])} 0H${xOf(age)}V${HEIGHT}H${xOf(ages[i])}Z` : "").join(""));
    if (line.classList.contains("bars")) {
      line.setAttribute("d", runs.flat().map(([x, y]) => `M${x} ${HEIGHT}V${y}`).join(""));
      return;
    }
    const paths = runs.map((run) => run.map(([x, y]) => `${x} ${y}`).join("L"));
    line.setAttribute("d", paths.map((path) => `M${path}`).join(""));
    area.setAttribute("d", runs.map((run, i) =>
      `M${run[0][0]} ${HEIGHT}L${paths[i]}L${run.at(-1)[0]} ${HEIGHT}Z`).join(""));
  }

  async function ask(path) {
    const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
    if (!response.ok) throw new Error(`${path}: ${response.status}`, { cause: response.status });
    return response.json();
  }

  // The version, labels, metrics and sections of this page. If the status has different ones, the page is
  // reloaded.
  const made = JSON.stringify(JSON.parse(document.querySelector("main").dataset.made));
  const shape = (status) => JSON.stringify(
    [status.version, status.labels, status.metrics, status.rankings, status.interfaces.enabled,
      status.names !== null, status.own_names !== null,
      status.forecast && [status.forecast.current.min_bytes, status.forecast.min_packets],
      status.views]);

  function showStatus(status) {
    if (made !== shape(status)) {
      // Drop the query string: the selected metric may no longer exist.
      location.replace(location.pathname);
      return;
    }
    const now = status.timestamp_seconds;
    for (const place of all("[data-key]:not(th)")) {
      const { key, format } = place.dataset, value = at(status, key);
      if (format === undefined) write(place, value);
      else write(place, formatted(value, format, now));
      if (STATES.includes(format)) place.className = classOf(value, format);
    }
    for (const table of all("[data-rows]")) {
      if (table.dataset.rows !== "top") fillTable(table, at(status, table.dataset.rows), now);
    }
    for (const svg of all("[data-limit]")) fillLimit(svg, status);
    const history = status.history;
    for (const svg of all("[data-series]")) {
      draw(svg, history.age_seconds, history[svg.dataset.series]);
    }
    for (const place of all("[data-highest]")) {
      const known = history[place.dataset.highest].filter((value) => value !== null);
      write(place, formatted(known.length ? Math.max(...known) : null, place.dataset.format, now));
    }
    for (const list of all("[data-notices]")) {
      const notices = at(status, list.dataset.notices);
      const same = notices.length === list.children.length
        && notices.every(({ severity, text }, i) => list.children[i].textContent === text
          && list.children[i].className === severity);
      if (!same) {
        list.replaceChildren(...notices.map(({ severity, text }) => {
          const item = document.createElement("li");
          item.className = severity;
          item.textContent = text;
          return item;
        }));
      }
    }
    const { state, text } = status.health;
    document.title = `${status.notices.length ? "▲ " : ""}`
      + `${state === "ready" ? "" : `${text} · `}skyfast · ${status.host_id}`;
  }

  const form = one("ask"), note = one("note");
  const topTable = document.querySelector('[data-rows="top"]');
  const wanted = () => {
    const parameters = new URLSearchParams(new FormData(form));
    for (const name of ["group", "view"]) if (!parameters.get(name)) parameters.delete(name);
    return parameters.toString();
  };

  function showTop(top) {
    if (top === null) {
      write(note, BUSY);
      return;
    }
    const choices = all(".choice a[data-by]");
    const choice = [...choices].find((link) => link.dataset.by === top.by);
    const head = topTable.tHead.rows[0].cells[0];
    head.dataset.format = choice.dataset.format;
    write(head, choice.textContent);
    // Hide the column of the ranking criterion, because the rank column shows the same values.
    for (const other of topTable.tHead.rows[0].cells) other.hidden = other.dataset.single === top.by;
    for (const link of choices) {
      if (link === choice) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    const most = top.entries.length ? top.entries[0].rank || 1 : 1;
    const rows = top.entries.map((entry) => ({ ...entry, share: entry.rank / most }));
    fillTable(topTable, rows, 0);
    if (top.note !== null) {
      write(note, top.note);
      return;
    }
    const noun = top.view ? "row" : "connection";
    const total = top.groups === null ? top.connections : top.groups;
    let text = `${count(rows.length)} of ${count(total)}`
      + ` ${top.groups === null ? noun : "group"}${total === 1 ? "" : "s"}`;
    if (top.view) text += ` of the view ${top.view}`;
    if (top.other !== null && top.other.connections) {
      text += `; ${count(top.other.connections)} other ${noun}s:`
        + ` ${formatted(top.other.rank, choice.dataset.format, 0)}`;
    }
    if (top.approximate) text += "; too many groups: sums are approximate";
    if (top.window_seconds !== null) {
      text += `; averages over the last ${duration(top.window_seconds)};`
        + ` agents report each flow every ${seconds(top.flow_update_seconds)}`;
    }
    write(note, text);
  }

  const stale = one("stale");
  let heardAt = new Date();
  let failures = 0;

  function heard() {
    heardAt = new Date();
    failures = 0;
    stale.hidden = true;
  }

  function missed(error) {
    console.debug(error);
    failures += 1;
    // skyfast may be restarting, so ignore the first failure.
    if (failures < 2) return;
    write(stale, `No response from skyfast since ${heardAt.toTimeString().slice(0, 8)}:`
      + " this page shows the state at that time.");
    stale.hidden = false;
    document.title = `▲ skyfast does not respond`;
  }

  let number = 0;
  async function refreshTop() {
    const mine = number += 1, query = wanted();
    const top = await ask(`api/top?${query}`).catch((error) => {
      // With status 503, only the ranking is unavailable: skyfast still responds.
      if (error.cause === 503) return null;
      throw error;
    });
    // The selection may have changed in the meantime.
    if (mine === number && query === wanted()) showTop(top);
  }

  async function refreshStatus() {
    showStatus(await ask("api/status"));
  }

  async function refresh() {
    // Send both requests, even if one fails. If the selected metric no longer exists, the ranking
    // fails, and the status makes the page reload.
    const ends = await Promise.allSettled([refreshStatus(), refreshTop()]);
    const failed = ends.find((end) => end.status === "rejected");
    if (failed) missed(failed.reason);
    else heard();
  }

  function changed() {
    history.replaceState(null, "", `?${wanted()}`);
    refreshTop().catch(missed);
  }

  let typing = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(typing);
    if (event.target.name === "group") {
      // Load the page again, because the table gets other columns.
      location.assign(`?${wanted()}`);
      return;
    }
    typing = setTimeout(changed, TYPING_MS);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    changed();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-by], a[data-filter], a[data-group]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    if (link.dataset.group !== undefined) {
      // Load the page again, because the table gets other columns.
      form.elements.view.value = link.dataset.view;
      const parameters = new URLSearchParams(wanted());
      parameters.delete("group");
      if (link.dataset.group) parameters.set("group", link.dataset.group);
      location.assign(`?${parameters}`);
      return;
    }
    if (link.dataset.by !== undefined) form.elements.by.value = link.dataset.by;
    else form.elements.filter.value = link.dataset.filter.slice(0, MAX_FILTER_CHARS);
    changed();
  });
  form.querySelector("button").hidden = true;
  repeat(refresh, INTERVAL_MS);
})();

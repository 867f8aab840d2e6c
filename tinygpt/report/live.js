// Keeps a page that `tinygpt watch` serves up to date: it asks for the state of the run, shows it in the status line,
// and fetches the page again when there is a newer version. `TinyPage` (page.js) replaces the content.

(() => {
  "use strict";

  const OFTEN = 1000; // milliseconds between questions
  const SELDOM = 3000; // in a hidden tab, and when the server does not answer
  const ENDED = ["finished", "stopped", "diverged"];
  const $ = (id) => document.getElementById(id);
  const { version, step } = $("live").dataset;
  const shown = { version, step: Number(step) }; // of the page
  let state = null; // what the server said last
  let timer = 0;

  const number = (value) => value.toLocaleString("en-US");
  const amount = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
  const speed = (tokens) => (tokens < 10000 ? number(tokens) : `${number(Math.round(tokens / 1000))}k`);

  function duration(seconds) {
    if (seconds < 90) return amount(Math.max(1, Math.round(seconds)), "second");
    return seconds < 5400 ? amount(Math.round(seconds / 60), "minute") : amount(Math.round(seconds / 3600), "hour");
  }

  function show(phase, ...details) {
    $("live").className = `live ${phase}`;
    const said = phase === "lost" ? "no connection" : phase;
    const mark = ENDED.includes(phase) ? "" : phase === "lost" ? ";" : ":";
    if ($("live-phase").textContent !== said) $("live-phase").textContent = said; // read aloud by a screen reader
    $("live-details").replaceChildren(mark, " ", ...details);
  }

  function showState() {
    const { phase, step, max_iters, loss, tokens_per_second, seconds_left, next } = state;
    const facts = [`step ${number(step)} of ${number(max_iters)}`];
    if (loss !== null) facts.push(`loss ${loss.toFixed(2)}`);
    if (phase === "waiting") return show(phase, "no run has started in this folder");
    if (phase === "starting") return show(phase, "the page appears after the first evaluation");
    if (ENDED.includes(phase)) {
      const code = document.createElement("code");
      code.textContent = next;
      const later = state.is_last ? "" : "; the last page is being made";
      return show(phase, `at step ${number(step)}${later}`, ...(next ? ["; next: ", code] : []));
    }
    if (tokens_per_second) facts.push(`${speed(tokens_per_second)} tokens per second`);
    if (seconds_left !== null) facts.push(`about ${duration(seconds_left)} left`);
    show(phase, facts.join(", "));
  }

  async function ask(path) {
    const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!response.ok) throw new Error(response.status);
    return response;
  }

  async function poll() {
    clearTimeout(timer);
    let wait = document.hidden ? SELDOM : OFTEN;
    try {
      state = await (await ask("/state")).json();
      showState();
      const worse = state.is_waiting && $("data"); // a run that is resumed has no page at first: keep this one
      if (state.version !== shown.version && !worse) await update();
    } catch {
      // after the end of a run and its last page, the server ends too
      if (!ENDED.includes(state?.phase) || !state.is_last) show("lost", `the page shows step ${number(shown.step)}`);
      wait = SELDOM;
    }
    timer = setTimeout(poll, wait);
  }

  /** Show the newest version of the page. */
  async function update() {
    const next = new DOMParser().parseFromString(await (await ask("/")).text(), "text/html");
    const { version, step } = next.getElementById("live").dataset;
    const other = typeof TinyPage === "undefined" || program(next) !== program(document) || next.title !== document.title;
    if (other) return location.reload();
    TinyPage.update(next);
    Object.assign(shown, { version, step: Number(step) });
  }

  const program = (page) => [...page.scripts].filter((script) => !script.type).map((script) => script.textContent).join();

  document.addEventListener("visibilitychange", () => document.hidden || poll());
  poll();
})();

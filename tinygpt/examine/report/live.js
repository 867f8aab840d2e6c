// Keeps a page up to date (live.py): it loads the state of the run, shows it in the status line, and loads the page again
// when there is a newer version. `TinyPage` (page.js) replaces the content.

(() => {
  "use strict";

  const OFTEN = 1000; // milliseconds between two states
  const SELDOM = 3000; // in a hidden tab, and when there is no state
  const SILENCE = 15000; // after which the process that writes the states has ended
  const ENDED = ["finished", "stopped", "diverged"];
  const $ = (id) => document.getElementById(id);
  const { version, step, scripts } = $("live").dataset;
  const shown = { version, step: Number(step) }; // of the page
  let state = null; // the newest one
  let changed = 0; // when it was read
  let received = null; // from the script that was loaded last
  let loading = false;
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
    const said = phase === "lost" ? "no longer updated" : phase;
    const mark = ENDED.includes(phase) ? "" : phase === "lost" ? ";" : ":";
    if ($("live-phase").textContent !== said) $("live-phase").textContent = said; // read aloud by a screen reader
    $("live-details").replaceChildren(mark, " ", ...details);
  }

  function showState() {
    const { phase, step, max_iters, loss, val_loss, tokens_per_second, seconds_left, next, problem, text } = state;
    const facts = [`step ${number(step)} of ${number(max_iters)}`];
    if (loss !== null) facts.push(`training loss ${loss.toFixed(2)}`);
    if (val_loss !== null) facts.push(`validation loss ${val_loss.toFixed(2)}`);
    if (text && $("untrained")) {
      $("untrained").hidden = false;
      $("untrained-text").textContent = text;
    }
    if (problem) return show(phase, `step ${number(step)}; the page cannot be made: ${problem}`);
    if (phase === "waiting") return show(phase, "no run has started in this folder");
    if (phase === "starting") return show(phase, "the curves appear after the first evaluation");
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

  window.TinyLive = (value) => { received = value; }; // which each script calls

  /** Load state.js or page.js. */
  function load(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${encodeURIComponent(scripts)}/${name}?${Date.now()}`;
      script.onload = script.onerror = ({ type }) => {
        script.remove();
        if (type === "load") resolve(received);
        else reject(new Error(name));
      };
      document.head.append(script);
    });
  }

  async function poll() {
    clearTimeout(timer);
    if (loading) return;
    loading = true;
    let wait = document.hidden ? SELDOM : OFTEN;
    try {
      const newest = await load("state.js");
      if (newest.count !== state?.count) changed = Date.now();
      state = newest;
      if (Date.now() - changed > SILENCE) throw new Error("no new state");
      showState();
      const worse = state.is_waiting && $("data"); // a new run has no page at first: keep this one
      if (state.version !== shown.version && !worse) await update();
    } catch {
      // after the end of a run and its last page, there are no states either
      if (!ENDED.includes(state?.phase) || !state.is_last) show("lost", `the page shows step ${number(shown.step)}`);
      wait = SELDOM;
    }
    loading = false;
    timer = setTimeout(poll, wait);
  }

  /** Show the newest version of the page. */
  async function update() {
    const next = new DOMParser().parseFromString(await load("page.js"), "text/html");
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

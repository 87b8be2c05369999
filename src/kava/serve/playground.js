/* Asks a question twice, thought in latents and written in words, and shows what each costs; below, the lens (lens.js). */
(() => {
  const element = (id) => document.getElementById(id);
  const knobs = { rounds: element("rounds"), latents: element("latents"), zeroed: element("zeroed") };
  const student = { name: "", facts: null };
  let key = ""; // in memory only
  let running = null; // the AbortController of the question under way
  let looking = null; // and of the look into the latents
  let last = null; // the question asked last, with its M and T

  /* The server */

  async function call(path, body, signal) {
    const headers = key ? { Authorization: "Bearer " + key } : {};
    const options = body ? { method: "POST", body: JSON.stringify(body), signal } : { signal };
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The server does not answer.");
    });
    if (!response.ok) throw await problem(response);
    return response;
  }

  async function problem(response) {
    const body = await response.json().catch(() => null);
    const again = response.headers.get("Retry-After");
    const text = body?.error?.message ?? "The server answers with status " + response.status + ".";
    return Object.assign(new Error(text + (again ? " (in " + again + " s)" : "")), { status: response.status });
  }

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("The answer broke off.");
      const whole = (text + value).split("\n\n");
      text = whole.pop();
      for (const line of whole) {
        if (line === "data: [DONE]") return;
        const event = JSON.parse(line.slice("data: ".length));
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    }
  }

  /* One side: an answer that grows, and its figures */

  function makeSide(root) {
    const part = (name) => root.querySelector("." + name);
    const side = { usage: null, began: 0 };
    side.note = (text) => { part("note").textContent = text; };
    side.start = () => {
      Object.assign(side, { usage: null, began: performance.now() });
      part("answer").textContent = "";
      part("problem").textContent = "";
      part("answer").setAttribute("aria-busy", "true");
      ["count", "time", "tokens"].forEach((name) => { part(name).textContent = "\u2013"; });
      drawPasses();
    };
    side.tick = () => {
      if (side.busy()) part("time").textContent = Math.round(performance.now() - side.began);
    };
    side.busy = () => part("answer").getAttribute("aria-busy") === "true";
    side.add = (text, usage) => {
      part("answer").append(text);
      side.usage = usage;
      part("count").textContent = usage.forward_passes;
      part("tokens").textContent = usage.completion_tokens;
      side.tick();
      drawPasses();
    };
    side.end = (problem) => {
      side.tick();
      part("answer").setAttribute("aria-busy", "false");
      part("problem").textContent = problem;
    };
    side.draw = (scale) => {
      const { forward_passes: passes, completion_tokens: writes } = side.usage ?? { forward_passes: 0, completion_tokens: 0 };
      const reads = Math.min(1, passes), thinks = passes - reads - writes;
      Object.entries({ reads, thinks, writes }).forEach(([name, count]) => {
        part("passes").querySelector("." + name).style.width = (100 * count) / scale + "%";
      });
      part("passes").setAttribute("aria-label", reads + " pass reads, " + thinks + " think, " + writes + " write");
    };
    return side;
  }

  const sides = { latents: makeSide(element("in-latents")), words: makeSide(element("in-words")) };

  function drawPasses() {
    const both = Object.values(sides);
    const most = Math.max(1, ...both.map((side) => side.usage?.forward_passes ?? 0));
    both.forEach((side) => side.draw(most));
  }

  async function stream(side, body, signal) {
    try {
      const options = { include_usage: true, continuous_usage_stats: true };
      const response = await call("/v1/chat/completions", { ...body, stream: true, stream_options: options }, signal);
      for await (const { choices, usage } of events(response)) side.add(choices[0]?.delta.content ?? "", usage);
      side.end("");
    } catch (error) {
      if (running?.signal !== signal) return; // the side belongs to a later question
      side.end(error.name === "AbortError" ? "Stopped." : error.message);
    }
  }

  /* Asking */

  const valueOf = (knob) => (knob.disabled ? undefined : Number(knob.value));
  const zeroedSlots = () => {
    const latents = Number(knobs.latents.value), count = valueOf(knobs.zeroed) ?? 0;
    return Array.from({ length: count }, (_, i) => latents - count + i);
  };

  function requests(question) {
    const common = { model: student.name, messages: [{ role: "user", content: question }] };
    const thought = { num_tokens: valueOf(knobs.latents), num_iterations: valueOf(knobs.rounds) }, slots = zeroedSlots();
    const ablation = slots.length ? { ablate: "zero", ablate_slots: slots } : {};
    last = { model: student.name, question, ...thought };
    return {
      latents: { ...common, reasoning: "latent", ...thought, ...ablation },
      words: { ...common, reasoning: "cot" },
    };
  }

  async function ask() {
    const question = element("question").value.trim();
    if (!question) return report("Type a question first.");
    running?.abort();
    const own = (running = new AbortController());
    const bodies = requests(question);
    element("stop").hidden = false;
    report("Asking \u2026");
    notes();
    Object.values(sides).forEach((side) => side.start());
    const ticking = setInterval(() => Object.values(sides).forEach((side) => side.tick()), 50);
    await Promise.all(Object.keys(sides).map((name) => stream(sides[name], bodies[name], own.signal)));
    clearInterval(ticking);
    if (running !== own) return;
    running = null;
    element("stop").hidden = true;
    report(own.signal.aborted ? "Stopped." : verdict());
    if (element("lens").open && !own.signal.aborted) look();
  }

  function stop() {
    running?.abort();
    looking?.abort();
  }

  function verdict() {
    const [latents, words] = [sides.latents, sides.words].map((side) => side.usage?.forward_passes);
    if (!latents || !words) return "";
    const text = "Latents took " + latents + " forward passes, words " + words;
    if (latents === words) return text + ".";
    const times = Math.max(latents, words) / Math.min(latents, words);
    return text + ": " + times.toFixed(1) + " times " + (latents < words ? "fewer." : "more.");
  }

  const report = (text) => { element("status").textContent = text; };

  /* The controls */

  function notes() {
    const slots = zeroedSlots(), { untrained, num_tokens: trained } = student.facts;
    const zeroed = slots.length ? " (" + slotNames(slots) + " set to zero)" : "";
    const how = thinks() ? "thinks in " : "fills ", what = thinks() ? " vectors" : " pause tokens";
    const before = trained ? how + knobs.latents.value + what + zeroed + ", then " : "";
    sides.latents.note(untrained.latent ?? before + "writes the answer alone");
    sides.words.note(untrained.cot ?? "writes every step, then the answer");
  }

  /* Without latents, or with pause tokens (T = 0), nothing is thought that could be set to zero. */
  function thinks() {
    const { num_tokens: latents, method } = student.facts;
    return latents > 0 && (method === "sequential" || Number(knobs.rounds.value) > 0);
  }

  function slotNames(slots) {
    const names = [slots[0], slots.at(-1)].map((slot) => "z" + (slot + 1));
    return slots.length === 1 ? names[0] : names.join(slots.length === 2 ? ", " : " to ");
  }

  function showKnobs() {
    const latents = Number(knobs.latents.value);
    knobs.zeroed.max = latents;
    knobs.zeroed.disabled = !thinks();
    element("rounds-value").textContent = knobs.rounds.disabled ? "\u2013" : knobs.rounds.value;
    element("latents-value").textContent = knobs.latents.disabled ? "\u2013" : knobs.latents.value;
    const slots = zeroedSlots();
    const names = !slots.length ? "none" : slots.length === latents ? "all" : slotNames(slots);
    element("zeroed-value").textContent = names;
    knobs.zeroed.setAttribute("aria-valuetext", names);
  }

  function setKnobs(facts) {
    const { num_tokens: latents, num_iterations: rounds, method } = facts;
    knobs.latents.max = Math.max(4, 2 * latents);
    knobs.latents.value = latents;
    knobs.latents.disabled = latents === 0;
    knobs.rounds.max = Math.max(4, 2 * rounds, latents);
    knobs.rounds.value = rounds;
    knobs.rounds.disabled = latents === 0 || rounds === 0 || method === "sequential";
    knobs.zeroed.value = 0;
    showKnobs();
  }

  function setExamples(questions) {
    element("examples").replaceChildren(...questions.map((question) => {
      const button = kavaLens.make("button", question);
      button.type = "button";
      button.addEventListener("click", () => { element("question").value = question; ask(); });
      return button;
    }));
    element("question").placeholder = questions.length ? "such as " + questions[0] : "";
  }

  /* The lens */

  async function look() {
    const status = element("lens-status"), room = element("lens-room");
    looking?.abort();
    const { signal } = (looking = new AbortController());
    room.replaceChildren();
    status.textContent = last ? "Looking \u2026" : "Ask a question first.";
    if (!last) return;
    try {
      const seen = await (await call("/lens", last, signal)).json();
      status.textContent = ["The thought as it was, before anything is set to zero", ...seen.notes].join("; ") + ".";
      room.replaceChildren(kavaLens.question(seen.questions[0]));
    } catch (error) {
      if (looking.signal === signal) status.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
  }

  /* The beginning */

  async function connect() {
    try {
      const { data: [model] } = await (await call("/v1/models")).json();
      Object.assign(student, { name: model.id, facts: model.kava });
      show(model.kava);
    } catch (error) {
      element("unlock").hidden = error.status !== 401;
      element("student").textContent = error.status === 401 && !key ? "A key is needed." : error.message;
      if (error.status === 401) element("key").select();
    }
  }

  function show(facts) {
    const how = facts.method === "sequential" ? "one after the other" : facts.num_iterations + " rounds";
    const shape = facts.num_tokens ? facts.num_tokens + " latents, " + how : "no latents";
    element("student").replaceChildren(kavaLens.make("code", student.name), " " + shape);
    element("about").textContent = facts.notes.map((note) => note[0].toUpperCase() + note.slice(1) + ".").join(" ");
    element("unlock").hidden = true;
    ["ask", "sides", "lens"].forEach((id) => { element(id).hidden = false; });
    setKnobs(facts);
    setExamples(facts.examples);
    notes();
    element("question").focus();
  }

  element("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    key = element("key").value.trim();
    connect();
  });
  element("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  element("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  element("stop").addEventListener("click", stop);
  element("lens").addEventListener("toggle", (event) => { if (event.target.open) look(); });
  Object.values(knobs).forEach((knob) => knob.addEventListener("input", showKnobs));
  connect();
})();

"use strict";
/* Draws the data of a lens; every text enters by textContent. kavaLens.page: a whole report, kavaLens.question: one of it. */
const kavaLens = (() => {
  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const under = (parent, ...nodes) => { parent.append(...nodes); return parent; };
  const fixed = (value, digits) => value === null || value === undefined ? "\u2013" : value.toFixed(digits).replace(/^-(0\.0*)$/, "$1");
  const latent = (i) => "z" + (i + 1);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const visible = (token) => token.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5") || "\u2205";

  function table(label, head, rows) {
    const box = make("div", null, "scroll"), grid = make("table"), top = make("thead"), line = make("tr"), body = make("tbody");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", label);
    head.forEach((word, i) => { const cell = make("th", word, i ? "n" : ""); cell.scope = "col"; line.append(cell); });
    rows.forEach((row) => {
      const tr = make("tr");
      row.forEach((cell, i) => tr.append(cell instanceof Node ? cell : make(i ? "td" : "th", cell, i ? "n" : "")));
      body.append(tr);
    });
    return under(box, under(grid, under(top, line), body));
  }
  function shade(value, low, high, digits, edge) {
    const cell = make("td", fixed(value, digits), "heat" + (edge ? " edge" : ""));
    const share = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0;
    cell.style.backgroundColor = "color-mix(in srgb, var(--accent) " + Math.round(65 * share) + "%, transparent)";
    return cell;
  }
  const nears = (list) => {
    const cell = make("td");
    list.forEach((near) => {
      const one = make("span", null, "near");
      cell.append(under(one, make("code", visible(near.token)), make("span", " " + fixed(near.value, 2))), " ");
    });
    return cell;
  };

  function effects(list, summary) {
    const gold = list.some((one) => one.gold_loss !== null);
    const rows = list.map((one) => [
      one.kind, one.slot === null ? "all" : latent(one.slot), fixed(one.own_loss, 3), ...(gold ? [fixed(one.gold_loss, 3)] : []),
      summary ? fixed(100 * one.kept, 1) + " %" : one.kept ? "yes" : "no",
      summary ? (one.accuracy === null ? "\u2013" : fixed(100 * one.accuracy, 1) + " %") : (one.answer === null ? "" : one.answer),
    ]);
    return table("What the answer loses",
      ["by", "latent", "own loses", ...(gold ? ["gold loses"] : []), "same answer", summary ? "correct" : "answer then"], rows);
  }
  /* A choice of `names`, and below it what `draw` makes of the number chosen. */
  function picker(label, names, first, draw) {
    const pick = make("select"), room = make("div");
    names.forEach((name, i) => { const option = make("option", name); option.value = i; pick.append(option); });
    pick.value = first;
    const redraw = () => room.replaceChildren(draw(Number(pick.value)));
    pick.addEventListener("change", redraw);
    redraw();
    return under(make("div"), under(make("label", label + " "), pick), room);
  }
  /* All of `parts` at once, or one of them; at first all, unless that is more than `most` rows. */
  function allOrOne(label, parts, rows, most, draw) {
    const names = ["all", ...parts.map(String)];
    return picker(label, names, rows <= most ? 0 : parts.length, (i) => draw(i ? [i - 1] : parts.map((_, part) => part)));
  }

  function attention(view) {
    const weights = (grid) => {
      const high = Math.max(...grid.flat(2));
      const rows = (layer) => grid[layer].map((row, t) => [String(layer),
        make("td", visible(view.tokens[t]) + (t >= view.cue ? " \u2192" : ""), "token"),
        ...row.map((weight) => shade(weight, 0, high, 2))]);
      return allOrOne("layer", grid.map((_, layer) => layer), grid.length * view.tokens.length, 60, (layers) =>
        table("Attention to the latents", ["layer", "token", ...grid[0][0].map((_, i) => latent(i))], layers.flatMap(rows)));
    };
    return under(make("div"), make("p", "Rows are the tokens that read; an arrow marks those that predict the answer.", "muted"),
      picker("weights", ["mean over heads", "largest of the heads"], 0, (i) => weights(i ? view.most : view.mean)));
  }
  function chain(view) {
    const average = view.best_step.map((_, i) => view.tokens.map((_, n) =>
      mean(view.keys.map((layer, l) => (layer[i][n] + view.values[l][i][n]) / 2))));
    const parts = [["keys and values, all layers", average], ...view.keys.flatMap((keys, layer) =>
      [["keys of layer " + layer, keys], ["values of layer " + layer, view.values[layer]]])];
    const draw = ([, grid]) => {
      const low = Math.min(...grid.flat()), high = Math.max(...grid.flat());
      const rows = grid.map((row, i) => [latent(i), ...row.map((value, n) => {
        const cell = shade(value, low, high, 2, view.step_of_token[n] === view.diagonal[i]);
        cell.title = view.steps[view.step_of_token[n]];
        return cell;
      })]);
      return table("Cosine to the chain of thought", ["", ...view.tokens.map(visible)], rows);
    };
    const best = view.best_step.map((step, i) => [latent(i), make("td", view.steps[step]), fixed(view.by_step[i][step], 3),
      view.diagonal[i] === null ? "\u2013" : view.diagonal[i] === step ? "yes" : "no"]);
    return under(make("div"), make("p", "Framed: the step on the diagonal of each latent.", "muted"),
      picker("cosine of", parts.map(([name]) => name), 0, (i) => draw(parts[i])),
      table("Nearest step", ["latent", "nearest step", "cosine", "on the diagonal"], best));
  }
  function rounds(list) {
    const rows = (place) => list[place].says.map((says, i) => [String(list[place].number), make("td", latent(i)), nears(says),
      list[place].reads ? nears(list[place].reads[i]) : make("td", "\u2013")]);
    return allOrOne("round", list.map((round) => round.number), list.length * list[0].says.length, 30, (places) => {
      const grid = table("Nearest tokens", ["round", "latent", "says (head, probability)", "reads (embedding, cosine)"],
        places.flatMap(rows));
      grid.querySelectorAll("thead th").forEach((cell) => { cell.className = ""; });
      return grid;
    });
  }

  function question(view) {
    const box = make("div"), facts = make("p"), verdict = view.correct === null ? "" : view.correct ? " right" : " wrong";
    under(facts, "answer ", make("code", view.answer), make("span", verdict, view.correct ? "good" : "bad"),
      view.gold === null ? "" : ", gold " + view.gold, ", log-probability " + fixed(view.own_logprob, 3)
      + (view.gold_logprob === null ? "" : " (gold " + fixed(view.gold_logprob, 3) + ")") + ", " + view.forward_passes
      + " forward passes");
    under(box, make("h3", view.question), facts, make("h3", "Nearest tokens"), rounds(view.rounds),
      make("h3", "Attention of the answer"), attention(view.attention));
    if (view.chain) under(box, make("h3", "Beside its chain of thought"), chain(view.chain));
    return under(box, make("h3", "What this answer loses, in nats"), effects(view.effects, false));
  }
  function page(root, report) {
    const head = report.questions.length + " questions" + (report.accuracy === null ? "" : ", "
      + fixed(100 * report.accuracy, 1) + " % correct") + ": " + report.num_tokens + " latents, " + report.num_rounds
      + " rounds (" + report.method + "), " + report.layers + " layers, recipe " + report.recipe;
    root.replaceChildren(make("h1", "What the latents hold"), make("p", head));
    if (report.checkpoint) root.append(under(make("p", null, "muted"), make("code", report.checkpoint)));
    report.notes.forEach((note) => root.append(make("p", note, "muted")));
    root.append(make("h2", "What the answers lose"), make("p", "Nats of log-probability lost by the student's own answer and by "
      + "the gold answer when one latent or all are replaced; means over the questions.", "muted"), effects(report.effects, true));
    const high = Math.max(...report.attention.flat());
    root.append(make("h2", "Attention of the answer to the latents"), table("Attention by layer",
      ["layer", ...report.attention[0].map((_, i) => latent(i))],
      report.attention.map((row, layer) => [String(layer), ...row.map((weight) => shade(weight, 0, high, 3))])));
    if (report.diagonal) root.append(make("h2", "The diagonal"), make("p", fixed(100 * report.diagonal.on_diagonal, 1) + " % of "
      + report.diagonal.latents + " latents are nearest to the step on their diagonal; "
      + fixed(100 * report.diagonal.chance, 1) + " % with the latents of each question in random order (p = "
      + report.diagonal.p.toPrecision(2) + ")."));
    root.append(make("h2", "Question by question"), picker("question",
      report.questions.map((view, i) => (i + 1) + ". " + view.question.slice(0, 80)), 0, (i) => question(report.questions[i])));
  }
  return { page, question, make, under, fixed };
})();

(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("js");

  // Lines of a manifest. Cells contain no line breaks, and the first two are `sample_id` and `decision`, which are
  // never quoted.
  const [header, ...lines] = data.manifest.split("\n").filter(Boolean);
  const idOf = (line) => line.slice(0, line.indexOf(","));
  const lineOf = new Map(lines.map((line) => [idOf(line), line]));

  // Samples of a table that are chosen, and those that were chosen when the page was made.
  const choices = (id) => {
    const table = document.getElementById(id);
    const rows = table ? Array.from(table.tBodies[0].rows) : [];
    const before = new Set(rows.filter((row) => "chosen" in row.dataset).map((row) => row.dataset.id));
    return { table, rows, before, now: new Set(before) };
  };
  const removed = choices("removed-table");
  const suspects = choices("suspects-table");
  const differs = ({ before, now }) => now.size !== before.size || [...now].some((id) => !before.has(id));
  let unsaved = false;

  // A sample that was kept by hand before, and is not any more, gets the decision of the others.
  const decided = (line) => {
    const id = idOf(line);
    const isKept = removed.now.has(id);
    if (isKept === removed.before.has(id)) return line;
    return `${id},${isKept ? "kept-by-hand" : data.word}${line.slice(line.indexOf(",", id.length + 1))}`;
  };
  const csv = (chosen) => [header, ...chosen, ""].join("\n");
  // A suspect has a line only if it is removed by hand.
  const manifest = () => csv([...lines.map(decided), ...data.suspects.filter((line) => suspects.now.has(idOf(line)))]);

  const say = (text, place) => {
    const said = document.getElementById(place);
    if (said) said.textContent = text;
  };
  const download = (text, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  const counts = () => `${removed.now.size} marked to keep`;
  const markedCount = () => `${suspects.now.size} marked to remove`;
  const updateCounts = () => {
    say(counts(), "kept-count");
    say(markedCount(), "marked-count");
  };
  const offer = (button, place) => {
    const found = document.getElementById(button);
    if (!found) return;
    found.addEventListener("click", () => {
      download(manifest(), data.name);
      unsaved = false;
      const both = [removed.table && counts(), suspects.table && markedCount()].filter(Boolean).join(", ");
      say(`${place === "said" ? "" : ". "}Downloaded the manifest; ${both}`, place);
    });
  };
  offer("download-manifest", "said");
  offer("download-marked", "said-marked");
  window.addEventListener("beforeunload", (event) => {
    if (unsaved && (differs(removed) || differs(suspects))) event.preventDefault();
  });

  // Sorting. The first click on a column puts its most suspicious end first; texts start with A.
  const sortable = ({ table, rows }, place) => {
    const headers = Array.from(table.tHead.rows[0].cells);
    const sort = (column, cell) => {
      const before = cell.getAttribute("aria-sort");
      const first = cell.dataset.sort === "descending" ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = before === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      const isText = cell.dataset.sort === "text";
      const keyed = rows.map((row) => {
        const value = row.cells[column].dataset.value;
        return [isText ? row.cells[column].textContent.trim() : Number(value), row];
      });
      keyed.sort(([a], [b]) => sign * (isText ? a.localeCompare(b, undefined, { numeric: true }) : a - b));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
      for (const each of headers) each.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", order);
      say(`${place === "said" ? "" : ". "}Sorted by ${cell.textContent.trim()}, ${order}`, place);
    };
    headers.forEach((cell, column) => {
      if (!cell.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.addEventListener("click", () => sort(column, cell));
      cell.append(button);
    });
  };
  for (const [part, place] of [[removed, "said"], [suspects, "said-marked"]]) {
    if (!part.table) continue;
    sortable(part, place);
    for (const box of part.table.querySelectorAll("input")) {
      box.checked = part.now.has(box.closest("tr").dataset.id); // browsers restore ticks when a page is loaded again
    }
    part.table.tBodies[0].addEventListener("change", (event) => {
      const id = event.target.closest("tr").dataset.id;
      if (event.target.checked) part.now.add(id);
      else part.now.delete(id);
      unsaved = true;
      updateCounts();
    });
  }
  updateCounts();
  if (!removed.table) return;

  // What only the table of removed samples has: filters, and lists of the shown rows.
  const controls = document.getElementById("controls");
  const shown = () => Array.from(removed.table.tBodies[0].rows).filter((row) => !row.hidden);
  const update = () => {
    const chosen = {};
    for (const name of ["label", "kind", "finder"]) {
      chosen[name] = document.getElementById(`filter-${name}`).value;
    }
    const words = document.getElementById("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of removed.rows) {
      const fits = Object.entries(chosen).every(([name, value]) => value === "" || row.dataset[name] === value);
      const text = fits && words.length ? row.textContent.toLowerCase() : "";
      row.hidden = !(fits && words.every((word) => text.includes(word)));
      count += row.hidden ? 0 : 1;
    }
    say(`${count} of ${removed.rows.length} rows shown`, "shown-count");
  };
  let waiting = 0;
  controls.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(update, 0));

  document.getElementById("download-shown").addEventListener("click", () => {
    const chosen = shown();
    download(csv(chosen.map((row) => decided(lineOf.get(row.dataset.id)))), `shown-${data.name}`);
    say(`Downloaded ${chosen.length} rows`, "said");
  });
  document.getElementById("copy-list").addEventListener("click", async () => {
    const chosen = shown();
    const text = chosen.map((row) => (row.querySelector("code") || row.querySelector(".index")).textContent).join("\n");
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied ${chosen.length} lines`, "said");
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      document.getElementById("copy-list").focus();
      say(done ? `Copied ${chosen.length} lines` : "The browser does not allow copying; download the rows instead", "said");
    }
  });
  update();
})();

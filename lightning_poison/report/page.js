(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("removed-table");
  document.documentElement.classList.add("js");
  if (!table) return;

  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const controls = document.getElementById("controls");
  const keptBefore = new Set(rows.filter((row) => "kept" in row.dataset).map((row) => row.dataset.id));
  const kept = new Set(keptBefore);
  const isChanged = () => kept.size !== keptBefore.size || [...kept].some((id) => !keptBefore.has(id));
  let unsaved = false;

  // The manifest: a header, and a line for each sample. Cells contain no line breaks, and the first two are
  // `sample_id` and `decision`, which are never quoted.
  const [header, ...lines] = data.manifest.split("\n").filter(Boolean);
  const idOf = (line) => line.slice(0, line.indexOf(","));
  const lineOf = new Map(lines.map((line) => [idOf(line), line]));
  // A sample that was kept by hand before, and is not any more, gets the decision of the others.
  const decided = (line) => {
    const id = idOf(line);
    if (kept.has(id) === keptBefore.has(id)) return line;
    return `${id},${kept.has(id) ? "kept-by-hand" : data.word}${line.slice(line.indexOf(",", id.length + 1))}`;
  };
  const manifest = (chosen) => [header, ...chosen.map(decided), ""].join("\n");
  const shown = () => Array.from(body.rows).filter((row) => !row.hidden);

  const say = (text) => {
    document.getElementById("said").textContent = text;
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

  const update = () => {
    const chosen = {};
    for (const name of ["label", "kind", "finder"]) {
      chosen[name] = document.getElementById(`filter-${name}`).value;
    }
    const words = document.getElementById("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = Object.entries(chosen).every(([name, value]) => value === "" || row.dataset[name] === value);
      const text = fits && words.length ? row.textContent.toLowerCase() : "";
      row.hidden = !(fits && words.every((word) => text.includes(word)));
      count += row.hidden ? 0 : 1;
    }
    document.getElementById("shown-count").textContent = `${count} of ${rows.length} rows shown`;
  };
  const updateKept = () => {
    document.getElementById("kept-count").textContent = `${kept.size} marked to keep`;
  };

  let waiting = 0;
  controls.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(update, 0));

  body.addEventListener("change", (event) => {
    const id = event.target.closest("tr").dataset.id;
    if (event.target.checked) kept.add(id);
    else kept.delete(id);
    unsaved = true;
    updateKept();
  });
  window.addEventListener("beforeunload", (event) => {
    if (unsaved && isChanged()) event.preventDefault();
  });

  // Sorting. The first click on a column puts its most suspicious end first; texts start with A.
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
    body.append(...keyed.map(([, row]) => row));
    for (const each of headers) each.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", order);
    say(`Sorted by ${cell.textContent.trim()}, ${order}`);
  };
  headers.forEach((cell, column) => {
    if (!cell.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sort(column, cell));
    cell.append(button);
  });

  document.getElementById("download-manifest").addEventListener("click", () => {
    download(manifest(lines), data.name);
    unsaved = false;
    say(`Downloaded the manifest; ${kept.size} marked to keep`);
  });
  document.getElementById("download-shown").addEventListener("click", () => {
    const chosen = shown();
    download(manifest(chosen.map((row) => lineOf.get(row.dataset.id))), `shown-${data.name}`);
    say(`Downloaded ${chosen.length} rows`);
  });
  document.getElementById("copy-list").addEventListener("click", async () => {
    const chosen = shown();
    const text = chosen.map((row) => (row.querySelector("code") || row.querySelector(".index")).textContent).join("\n");
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied ${chosen.length} lines`);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      document.getElementById("copy-list").focus();
      say(done ? `Copied ${chosen.length} lines` : "The browser does not allow copying; download the rows instead");
    }
  });

  for (const box of body.querySelectorAll("input")) {
    box.checked = kept.has(box.closest("tr").dataset.id); // some browsers restore ticks when a page is loaded again
  }
  update();
  updateKept();
})();

// Makes the model table searchable, filtered by domain and licence, and sortable. Without this script it stays a table.
document.addEventListener("DOMContentLoaded", () => {
  const box = document.querySelector(".zoo-models");
  const table = box && box.querySelector("table");
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells];
  const names = heads.map((cell) => cell.textContent.trim());
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = (row, column) => row.cells[column].textContent.trim();
  for (const row of rows) [...row.cells].forEach((cell, column) => { cell.dataset.label = names[column]; });

  const tools = document.createElement("form");
  tools.className = "zoo-tools";
  const field = (label, control, name) => {
    const frame = document.createElement("label");
    control.name = name;
    frame.append(label, control);
    tools.append(frame);
    return control;
  };
  const search = field("Search", document.createElement("input"), "search");
  search.type = "search";
  search.placeholder = "name, paper, metric ...";
  search.parentElement.className = "zoo-search";
  const choice = (name) => {
    const column = names.indexOf(name);
    const select = field(name, document.createElement("select"), name.toLowerCase());
    const values = [...new Set(rows.map((row) => text(row, column)))].sort();
    select.append(new Option("all", ""), ...values.map((value) => new Option(value)));
    return { column, select };
  };
  const choices = [choice("Domain"), choice("Licence")];
  const count = document.createElement("output");
  tools.append(count);
  box.prepend(tools);

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const all = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => all.includes(word))
        || choices.some(({ column, select }) => select.value && text(row, column) !== select.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} models`;
  };
  tools.addEventListener("input", filter);
  tools.addEventListener("submit", (event) => event.preventDefault());

  // "1.65 M" and "1.2 G" as numbers, anything else as text.
  const scales = { K: 1e3, M: 1e6, G: 1e9 };
  const number = (value) => {
    const found = /^([\d.]+) ([KMG])$/.exec(value);
    return found ? found[1] * scales[found[2]] : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = names[column];
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort((a, b) => (down ? -1 : 1) * compare(text(a, column), text(b, column)));
      body.append(...rows);
    });
  });
  filter();
});

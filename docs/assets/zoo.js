// Filters and sorts the table of the zoo; without it the table is whole.
const zoo = document.getElementById("zoo");
if (zoo) {
  const form = document.querySelector(".zoo-filter");
  const body = zoo.tBodies[0];
  const rows = [...body.rows];
  const limits = {gflops: Math.min, params: Math.min, latency: Math.min, score: Math.max};

  const passes = (row) => {
    const {task, text} = form.elements;
    if (task.value && row.dataset.task !== task.value) return false;
    const words = text.value.toLowerCase().split(/\s+/);
    if (!words.every((word) => row.textContent.toLowerCase().includes(word))) return false;
    return Object.entries(limits).every(([key, better]) => {
      const limit = form.elements[key].value;
      if (limit === "") return true;
      const value = row.dataset[key];  // what is not known passes no limit
      return value !== undefined && better(Number(value), Number(limit)) === Number(value);
    });
  };
  const filter = () => {
    for (const row of rows) row.hidden = !passes(row);
    form.elements.count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} models`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  [...zoo.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of zoo.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = head.dataset.key;
      const value = (row) => (key in limits ? row.dataset[key] : row.cells[column].textContent);
      const order = (a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
        const way = key in limits ? left - right : left.localeCompare(right);
        return up ? way : -way;
      };
      body.append(...rows.sort(order));
    });
  });
}

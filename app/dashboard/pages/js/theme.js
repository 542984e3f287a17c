// Light or dark before the first picture: loaded in the head, no module, so that no page flashes.
document.documentElement.dataset.theme =
  localStorage.getItem("growthlaw.theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

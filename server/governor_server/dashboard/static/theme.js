// The theme that was chosen, before anything is painted. Not a module: those wait for the page.
(() => {
  try {
    const chosen = localStorage.getItem("governor-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Without storage the system's theme stays.
  }
})();

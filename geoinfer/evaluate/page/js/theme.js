// Light or dark, settled before anything is drawn. Without a choice of the reader's, the system's own is followed.
"use strict";
(() => {
  const KEY = "geoinfer-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    // Where pages on a disk may keep nothing, asking throws.
    chosen = window.localStorage.getItem(KEY);
  } catch {
    chosen = null;
  }

  function current() {
    if (chosen === "light" || chosen === "dark") return chosen;
    return system.matches ? "dark" : "light";
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new CustomEvent("themechange"));
  }

  function label(button) {
    button.textContent = current() === "dark" ? "Light theme" : "Dark theme";
  }

  show(current());
  system.addEventListener("change", () => show(current()));
  // Paper is light; what is drawn on a canvas knows of the paper only by this.
  window.addEventListener("beforeprint", () => show("light"));
  window.addEventListener("afterprint", () => show(current()));

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.hidden = false;
    label(button);
    document.addEventListener("themechange", () => label(button));
    button.addEventListener("click", () => {
      chosen = current() === "dark" ? "light" : "dark";
      try {
        window.localStorage.setItem(KEY, chosen);
      } catch {
        // It lasts as long as the page does.
      }
      show(current());
    });
  });
})();

// Returns what a reader would stumble over: texts with too little contrast, and what is too wide.
(() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  const paint = (colours) => {
    brush.fillStyle = getComputedStyle(document.documentElement).colorScheme.includes("dark")
      && matchMedia("(prefers-color-scheme: dark)").matches ? "#000" : "#fff";
    brush.fillRect(0, 0, 1, 1);
    for (const [colour, opacity] of colours) {
      brush.globalAlpha = opacity;
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 1, 1);
    }
    brush.globalAlpha = 1;
    return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  // Relative luminance and contrast: WCAG 2.2, "contrast ratio".
  const light = (rgb) => {
    const [r, g, b] = rgb.map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const weak = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, title")) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const around = [];
    for (let one = element; one; one = one.parentElement) around.unshift(one);
    const opacity = around.reduce((all, one) => all * Number(getComputedStyle(one).opacity), 1);
    const below = around.map((one) => [getComputedStyle(one).backgroundColor, 1]);
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const ratio = contrast(paint(below), paint([...below, [ink, opacity]]));
    texts += 1;
    if (ratio < 4.5) weak.push([node.data.trim().slice(0, 40), Number(ratio.toFixed(2))]);
  }
  const root = document.documentElement;
  const inside = (element) => element.closest(".wide") !== null;
  const wide = [...document.body.querySelectorAll("*")]
    .filter((one) => !inside(one) && one.checkVisibility())
    .filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1)
    .map((one) => `${one.tagName} ${one.className.baseVal ?? one.className}`);
  const small = [...document.querySelectorAll(".plot > span")]
    .filter((one) => one.checkVisibility() && parseFloat(getComputedStyle(one).fontSize) < 11)
    .map((one) => one.textContent);
  return { texts, weak, wide, small, overflow: root.scrollWidth - root.clientWidth };
})();

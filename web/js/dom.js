// Elements, made without HTML: what comes from a file enters the page as text.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function addStyle(url) {
  document.head.append(element("link", { rel: "stylesheet", href: url }));
}

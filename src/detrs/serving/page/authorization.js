/* The token of the server, if it needs one. It is kept in memory: a new page asks again. */

import { byId } from "./elements.js";

let token = null;
let asking = null;

/** The headers of requests. */
export function authorization() {
  return token === null ? {} : { Authorization: `Bearer ${token}` };
}

/** Asks for the token, once for all requests that need it; resolves to whether there is a new one. */
export function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("authorization");
    byId("authorization-status").textContent = token === null ? "This server requires a token." : "The server does not accept this token.";
    byId("token").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      if (byId("token").value) token = byId("token").value;
      resolve(Boolean(byId("token").value));
      byId("token").value = "";
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

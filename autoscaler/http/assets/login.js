// Signs in with a token that stands after #token= in the address: no browser sends that part to a server, and it is taken
// out of the address before anything else is asked for.
"use strict";

const [word, given] = window.location.hash.slice(1).split("=", 2);
if (word === "token" && given) {
  window.history.replaceState(null, "", window.location.pathname);
  document.getElementById("token").value = decodeURIComponent(given);
  document.querySelector("form").requestSubmit();
}

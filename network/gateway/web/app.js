// The page of one desktop. Its address is /desktop/<environment>#token=…; the
// fragment never leaves the browser, the token goes to the gateway as a
// WebSocket subprotocol. Further words of the fragment: view=1 (the token only
// sees) and resize=scale|remote.
import RFB from './novnc/core/rfb.js';
import screenKeyboard from './keyboard.js';

// Close codes of the gateway (session.go). What is not final is tried again.
const FINAL = {
  4401: ['This link has expired', 'Ask for a new link to your desktop and open it.'],
  4403: ['This link is not valid', 'Ask for a new link to your desktop and open it.'],
  4404: ['This desktop is gone', 'Its environment was deleted, or has no desktop any more.'],
  4429: ['Too many viewers', 'This desktop is open in as many windows as it takes. Close one and connect again.'],
  1008: ['Connection refused', 'This browser sent something that the gateway does not let through.'],
};
// What stays so until somebody does something: the page asks on, and says it once.
const RESTING = {
  4409: ['This desktop is stopped', 'It opens here when its environment is started.'],
  4423: ['This desktop is paused', 'It goes on here when its environment is resumed.'],
  4500: ['This desktop has failed', 'It opens here when its environment is started again. Ask whoever runs it what went wrong.'],
};
const AGAIN = {
  4410: 'The desktop ended. It comes back when its environment runs again.',
  4503: 'The desktop does not answer yet. It may still be starting.',
  1001: 'The gateway restarts.',
};
const LONGEST_WAIT = 10000; // ms between attempts
const STEADY = 5000; // ms after which a connection counts as good

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const environment = location.pathname.split('/').filter(Boolean).pop();

let rfb = null;
let attempt = 0;
let timer = 0;
let resting = 0; // the code of RESTING that is shown
let options = new URLSearchParams();

function notice(kind, title, detail, again) {
  $('notice').hidden = false;
  $('notice').className = kind;
  root.dataset.state = kind;
  $('title').textContent = title;
  $('detail').textContent = detail;
  $('again').hidden = !again;
  $('spinner').hidden = kind !== 'busy';
  document.title = `${title} · ${environment}`;
}

function socketURL() {
  const url = new URL(location.href);
  url.protocol = url.protocol === 'http:' ? 'ws:' : 'wss:';
  url.pathname = url.pathname.replace(/\/+$/, '') + '/rfb';
  url.search = '';
  url.hash = '';
  return url.href;
}

function connect() {
  clearTimeout(timer);
  options = new URLSearchParams(location.hash.slice(1));
  const token = options.get('token');
  if (!token) {
    notice('stopped', 'No token in this link', 'Open the whole link that you were given: its end, after #, lets you in. '
      + `On the node, this makes a new one: remotegpu desktop url ${environment}`, false);
    return;
  }
  if (!/^[A-Za-z0-9_-]+$/.test(token)) {
    notice('stopped', ...FINAL[4403], false);
    return;
  }
  if (!resting) { notice('busy', attempt ? 'Connecting again' : 'Connecting', 'Opening the desktop.', false); }
  const socket = new WebSocket(socketURL(), ['binary', `remotegpu.token.${token}`]);
  let closed = { code: 1006 };
  socket.addEventListener('close', (event) => { closed = event; });

  named(environment);
  const session = new RFB($('screen'), socket, { shared: true });
  rfb = session;
  let since = 0;
  const viewOnly = options.get('view') === '1';
  session.viewOnly = viewOnly;
  session.background = 'var(--ground)';
  session.focusOnClick = true;
  setFit(options.get('resize') === 'remote' && !viewOnly ? 'remote' : 'scale');

  session.addEventListener('connect', () => {
    since = performance.now();
    attempt = 0;
    resting = 0;
    root.classList.add('noVNC_connected');
    root.dataset.state = 'connected';
    document.title = $('name').textContent;
    $('notice').hidden = true;
    $('bar').hidden = false;
    $('viewing').hidden = !viewOnly;
    for (const id of ['fit', 'keys', 'paste']) { $(id).hidden = viewOnly; }
    $('type').hidden = viewOnly || !navigator.maxTouchPoints;
    session.focus();
  });
  session.addEventListener('desktopname', (event) => named(event.detail.name || environment));
  session.addEventListener('clipboard', (event) => { $('text').value = event.detail.text; });
  session.addEventListener('disconnect', () => {
    if (rfb !== session) { return; }
    rfb = null;
    root.classList.remove('noVNC_connected');
    showClipboard(false);
    resting = RESTING[closed.code] ? closed.code : 0;
    if (FINAL[closed.code]) {
      notice('stopped', ...FINAL[closed.code], closed.code === 4429 || closed.code === 1008);
      return;
    }
    if (since && performance.now() - since > STEADY) { attempt = 0; }
    const wait = Math.min(1000 * 1.6 ** attempt++, LONGEST_WAIT);
    timer = setTimeout(connect, wait);
    if (resting) {
      notice('stopped', ...RESTING[resting], true);
      return;
    }
    const why = AGAIN[closed.code] || (since ? 'The connection was lost.' : 'The gateway cannot be reached.');
    notice('busy', since ? 'Disconnected' : 'Waiting for the desktop', `${why} Trying again in ${Math.round(wait / 1000)} s.`, true);
  });
}

function named(name) {
  $('name').textContent = name;
  $('name').title = environment;
  if (root.dataset.state === 'connected') { document.title = name; }
}

function setFit(fit) {
  if (!rfb) { return; }
  rfb.scaleViewport = true;
  rfb.resizeSession = fit === 'remote';
  $('fit').dataset.fit = fit;
  $('fit').textContent = fit === 'remote' ? 'Follows window' : 'Scaled';
}

function showClipboard(shown) {
  $('clipboard').hidden = !shown;
  $('clipboard').style.top = `${$('bar').offsetHeight + 6}px`;
  $('refused').textContent = '';
  $('paste').setAttribute('aria-expanded', String(shown));
  if (shown) { $('text').focus(); } else if (rfb) { rfb.focus(); }
}

$('again').addEventListener('click', () => { attempt = 0; resting = 0; connect(); });
$('fit').addEventListener('click', () => { setFit($('fit').dataset.fit === 'remote' ? 'scale' : 'remote'); rfb?.focus(); });
$('keys').addEventListener('click', () => { rfb?.sendCtrlAltDel(); rfb?.focus(); });
$('paste').addEventListener('click', () => showClipboard($('clipboard').hidden));
$('text').addEventListener('input', () => rfb?.clipboardPasteFrom($('text').value));
$('clipboard').addEventListener('keydown', (event) => { if (event.key === 'Escape') { showClipboard(false); } });
// What browsers let pages do with their device's clipboard only after a click,
// and some not even then.
$('device').hidden = !navigator.clipboard;
async function device(exchange) {
  $('refused').textContent = '';
  try {
    await exchange();
  } catch {
    $('refused').textContent = 'This browser does not allow it: use the field.';
  }
}
$('take').addEventListener('click', () => device(async () => {
  $('text').value = await navigator.clipboard.readText();
  rfb?.clipboardPasteFrom($('text').value);
}));
$('give').addEventListener('click', () => device(() => navigator.clipboard.writeText($('text').value)));

screenKeyboard($('typed'), (keysym, code, down) => rfb?.sendKey(keysym, code, down));
const typing = () => document.activeElement === $('typed');
$('type').addEventListener('mousedown', (event) => event.preventDefault()); // the focus stays where it is
$('type').addEventListener('click', () => { if (typing()) { $('typed').blur(); } else { $('typed').focus(); } });
for (const type of ['focus', 'blur']) {
  $('typed').addEventListener(type, () => {
    $('type').setAttribute('aria-pressed', String(typing()));
    if (rfb) { rfb.focusOnClick = !typing(); } // a tap on the desktop leaves the keyboard open
  });
}

$('full').hidden = !document.fullscreenEnabled;
$('full').addEventListener('click', async () => {
  try {
    await (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen());
  } catch {
    $('full').hidden = true; // the frame that holds this page does not allow it
  }
  rfb?.focus();
});
document.addEventListener('fullscreenchange', () => {
  $('full').textContent = document.fullscreenElement ? 'Leave fullscreen' : 'Fullscreen';
});
// A new link in the same tab, or a new token from the page that embeds this one.
addEventListener('hashchange', () => {
  const old = rfb;
  rfb = null;
  root.classList.remove('noVNC_connected');
  old?.disconnect();
  attempt = 0;
  resting = 0;
  connect();
});

connect();

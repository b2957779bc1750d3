// The keyboard of a screen. It opens for a field that takes text, and many of
// them send no keys but change that text; so it is compared with what it was,
// and the difference is typed. Keys that are sent as such go through noVNC's
// own handler.
import Keyboard from './novnc/core/input/keyboard.js';
import keysyms from './novnc/core/input/keysymdef.js';
import KeyTable from './novnc/core/input/keysym.js';

const FILLING = '_'.repeat(100); // something to delete
const LONGEST = 1000;

// screenKeyboard has field type into what send(keysym, code, down) leads to.
export default function screenKeyboard(field, send) {
  let was = [];
  const reset = () => {
    field.value = FILLING;
    was = [...FILLING];
    field.setSelectionRange(was.length, was.length);
  };
  const press = (keysym, code) => { send(keysym, code, true); send(keysym, code, false); };
  field.addEventListener('input', () => {
    const now = [...field.value];
    let same = 0;
    while (same < was.length && same < now.length && was[same] === now[same]) { same += 1; }
    for (let i = same; i < was.length; i++) { press(KeyTable.XK_BackSpace, 'Backspace'); }
    for (const character of now.slice(same)) {
      if (character === '\n') { press(KeyTable.XK_Return, 'Enter'); } else { press(keysyms.lookup(character.codePointAt(0)), null); }
    }
    was = now;
    if (now.length === 0 || now.length > LONGEST) { reset(); }
  });
  const keys = new Keyboard(field);
  keys.onkeyevent = send;
  keys.grab();
  field.addEventListener('focus', reset);
}

// Drives one headless Chromium through a list of actions read as JSON from
// standard input, and prints what it saw as JSON. See browser.go for both.
import { chromium } from 'playwright-core';

const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

// The colours of the desktop's canvas, counted as the Go side does.
function canvas() {
  const element = document.querySelector('#screen canvas') ?? document.querySelector('canvas');
  if (!element) { return { width: 0, height: 0, colours: 0 }; }
  const { width, height } = element;
  if (!width || !height) { return { width, height, colours: 0 }; }
  const { data } = element.getContext('2d').getImageData(0, 0, width, height);
  const seen = new Set();
  for (let i = 0; i < data.length && seen.size < 4096; i += 4) {
    seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
  }
  return { width, height, colours: seen.size };
}

async function until(page, timeout, what, probe) {
  const end = Date.now() + timeout;
  for (;;) {
    const value = await probe();
    if (value) { return value; }
    if (Date.now() > end) { throw new Error(`${what}: not within ${timeout} ms`); }
    await page.waitForTimeout(100);
  }
}

const actions = {
  async open(page, a) { const answer = await page.goto(a.url, { timeout: a.timeout }); return { status: answer?.status() ?? 0 }; },
  async connected(page, a) {
    await page.waitForFunction(() => document.documentElement.classList.contains('noVNC_connected'), null, { timeout: a.timeout });
    return {};
  },
  async state(page, a) {
    await page.waitForFunction((state) => document.documentElement.dataset.state === state, a.text, { timeout: a.timeout });
    return { text: await page.locator('#notice').innerText() };
  },
  async colours(page, a) {
    return { canvas: await until(page, a.timeout, `more than ${a.count} colours`, async () => {
      const seen = await page.evaluate(canvas);
      return seen.colours > a.count ? seen : null;
    }) };
  },
  async size(page, a) {
    return { canvas: await until(page, a.timeout, `a desktop ${a.count} wide`, async () => {
      const seen = await page.evaluate(canvas);
      return seen.width === a.count ? seen : null;
    }) };
  },
  async canvas(page) { return { canvas: await page.evaluate(canvas) }; },
  async type(page, a) { await page.keyboard.type(a.text, { delay: 30 }); return {}; },
  // As the keyboard of a screen does: text comes, and no keys.
  async insert(page, a) { await page.keyboard.insertText(a.text); return {}; },
  async press(page, a) { await page.keyboard.press(a.text); return {}; },
  async click(page, a) { await page.click(a.selector, { timeout: a.timeout }); return {}; },
  // A click at a point of the desktop, in its own pixels.
  async point(page, a) {
    const box = await page.locator('#screen canvas').boundingBox();
    const seen = await page.evaluate(canvas);
    await page.mouse.click(box.x + (a.x * box.width) / seen.width, box.y + (a.y * box.height) / seen.height, { button: a.text || 'left' });
    return {};
  },
  async inside(page, a) {
    const box = await page.locator(a.selector).boundingBox({ timeout: a.timeout });
    const { width, height } = page.viewportSize();
    if (!box || box.x < 0 || box.y < 0 || box.x + box.width > width || box.y + box.height > height) {
      throw new Error(`${a.selector} is at ${JSON.stringify(box)}, outside of ${width}x${height}`);
    }
    return {};
  },
  async fill(page, a) { await page.fill(a.selector, a.text, { timeout: a.timeout }); return {}; },
  async text(page, a) {
    return { text: await until(page, a.timeout, `text in ${a.selector}`, async () => {
      const element = page.locator(a.selector);
      const value = await element.evaluate((e) => ('value' in e && e.tagName !== 'BUTTON' ? e.value : e.innerText));
      return value.includes(a.text) ? value || ' ' : null;
    }) };
  },
  async wait(page, a) { await page.waitForTimeout(a.timeout); return {}; },
  async screenshot(page, a) { await page.screenshot({ path: a.path }); return {}; },
};

const input = [];
for await (const chunk of process.stdin) { input.push(chunk); }
const request = JSON.parse(Buffer.concat(input).toString());
const result = { steps: [], console: [], error: '' };
const browser = await chromium.launch({
  executablePath: request.chromium, headless: true, args: FLAGS, timeout: 60000,
});
try {
  const context = await browser.newContext({
    ignoreHTTPSErrors: true, viewport: { width: request.width, height: request.height }, hasTouch: request.touch,
    permissions: ['clipboard-read', 'clipboard-write'],
  });
  const page = await context.newPage();
  page.on('console', (message) => result.console.push(`${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => result.console.push(`error: ${error}`));
  for (const action of request.actions) {
    try {
      result.steps.push(await actions[action.do](page, action));
    } catch (error) {
      result.error = `${action.do}: ${error.message ?? error}`;
      if (request.failure) { await page.screenshot({ path: request.failure }).catch(() => {}); }
      break;
    }
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(result));

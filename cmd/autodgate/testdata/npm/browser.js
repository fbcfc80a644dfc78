// Uses OWA in Chromium as a person does, and prints a line of JSON for each thing seen.
//
// usage: node browser.js CHROMIUM HTTPS HTTP SPKI MODE LOGIN PASSWORD [LOGIN PASSWORD]
//
// HTTPS and HTTP are host:port that mail.contoso.com leads to, SPKI is the hash of the key whose certificate the browser accepts. MODE is
// forms, for OWA's own login; windows, for NTLM by several users at once; or kerberos, for the tickets in KRB5CCNAME.

const { createHash } = require('crypto')
const { mkdtempSync, rmSync, writeFileSync } = require('fs')
const { tmpdir } = require('os')
const { join } = require('path')
const { chromium } = require('playwright-core')

const [executablePath, https, http, spki, mode, ...accounts] = process.argv.slice(2)
const print = (what) => console.log(JSON.stringify(what))

// fetchAll reads a page several times at once while a stream of events is under way, and returns the users it was served to. The stream
// keeps its connection, so that the browser needs others beside it, however quick the answers are.
const fetchAll = (page, path, times) => page.evaluate(async ([path, times]) => {
  const messages = 'xmlns="http://schemas.microsoft.com/exchange/services/2006/messages"'
  const call = (operation) => fetch('/ews/exchange.asmx', {
    method: 'POST',
    headers: { 'Content-Type': 'text/xml; charset=utf-8' },
    body: `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>${operation}</s:Body></s:Envelope>`
  })
  const subscribed = await (await call(`<Subscribe ${messages}/>`)).text()
  const id = `<SubscriptionId>${subscribed.match(/SubscriptionId>([^<]+)/)[1]}</SubscriptionId>`
  const stream = await call(`<GetStreamingEvents ${messages}><SubscriptionIds>${id}</SubscriptionIds></GetStreamingEvents>`)
  const reader = stream.body.getReader()
  await reader.read()
  const answers = [stream, ...await Promise.all(Array.from({ length: times }, (_, n) => fetch(`${path}&n=${n}`, { cache: 'no-store' })))]
  await call(`<Unsubscribe ${messages}>${id}</Unsubscribe>`)
  while (!(await reader.read()).done);
  return answers.map((a) => `${a.status} ${a.headers.get('x-lab-user')}`)
}, [path, times])

async function forms(browser, [login, password]) {
  const context = await browser.newContext()
  const page = await context.newPage()
  await page.goto('http://mail.contoso.com/')
  print({ step: 'logon', url: page.url() })

  const logon = async (password) => {
    await page.fill('#username', login)
    await page.fill('#password', password)
    await page.click('#signin')
  }
  await logon('wrong')
  print({ step: 'wrong password', url: page.url(), text: await page.textContent('#wrong') })
  await logon(password)
  print({ step: 'mail', url: page.url(), text: await page.textContent('#user') })

  // What is new comes while the answer is under way: it is the page that ends it, after it has seen the first piece.
  const pieces = await page.evaluate(async () => {
    const canary = document.cookie.match(/X-OWA-CANARY=([^;]*)/)[1]
    const notifications = (ev) => fetch(`/owa/ev.owa2?ns=PendingRequest&ev=${ev}&UA=0`, { headers: { 'X-OWA-CANARY': canary } })
    const reader = (await notifications('PendingNotificationRequest')).body.pipeThrough(new TextDecoderStream()).getReader()
    const pieces = []
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      pieces.push(piece.value)
      if (pieces.length === 1) await notifications('FinishNotificationRequest')
    }
    return pieces
  })
  print({ step: 'notifications', pieces })

  const body = Buffer.alloc(8 << 20, 'attachment ')
  const uploaded = await page.evaluate(async ([size, long]) => {
    const canary = document.cookie.match(/X-OWA-CANARY=([^;]*)/)[1]
    const call = async (action, headers, body) => {
      const answer = await fetch(`/owa/service.svc?action=${action}`, {
        method: 'POST', body, headers: { 'X-OWA-CANARY': canary, Action: action, 'Content-Type': 'application/octet-stream', ...headers }
      })
      return answer.json()
    }
    const text = 'attachment '.repeat(size / 11 + 1).slice(0, size)
    return {
      attachment: await call('CreateAttachmentFromLocalFile', {}, new Blob([text])),
      call: await call('FindConversation', { 'X-OWA-UrlPostData': 'x'.repeat(long) }, '')
    }
  }, [body.length, 12 << 10])
  print({
    step: 'upload', length: uploaded.attachment.length, same: uploaded.attachment.sha256 === createHash('sha256').update(body).digest('hex'),
    header: uploaded.call.urlPostData
  })

  const ecp = await page.goto('https://mail.contoso.com/ecp/')
  print({ step: 'ecp', url: page.url(), text: (await page.textContent('body')).trim(), status: ecp.status() })
  await page.goto('https://mail.contoso.com/owa/logoff.owa')
  await page.goto('https://mail.contoso.com/owa/')
  print({ step: 'logged off', url: page.url() })
}

async function windows(context, username) {
  const page = await context.newPage()
  const first = await page.goto('https://mail.contoso.com/mapi/emsmdb/?showdebug=yes').catch((error) => error)
  if (first instanceof Error || first.status() !== 200) { // an error is what comes of a login that went wrong twice
    print({ step: username, text: first instanceof Error ? first.message.match(/net::\w+/)[0] : String(first.status()) })
    return
  }
  const text = (await page.textContent('body')).replace(/\s+/g, ' ').trim()
  print({ step: username, status: first.status(), text, users: [...new Set(await fetchAll(page, '/ews/exchange.asmx?x', 24))] })
}

async function main() {
  const options = {
    executablePath,
    chromiumSandbox: process.getuid() !== 0,
    args: [
      '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
      '--disable-features=HttpsUpgrades', '--no-proxy-server', '--auth-server-allowlist=*.contoso.com',
      `--host-resolver-rules=MAP mail.contoso.com:443 ${https},MAP mail.contoso.com:80 ${http},MAP * ~NOTFOUND`,
      `--ignore-certificate-errors-spki-list=${spki}`
    ]
  }
  if (mode === 'kerberos') { // tickets are not for the private windows that a context is
    const profile = mkdtempSync(join(tmpdir(), 'browser-'))
    // As after the first Negotiate that the browser has met, from when on it may load Kerberos; and services are called what the URL says.
    writeFileSync(join(profile, 'Local State'), JSON.stringify({
      net: { received_http_auth_negotiate_headers: true }, auth: { disable_negotiate_cname_lookup: true }
    }))
    const context = await chromium.launchPersistentContext(profile, options)
    try {
      await windows(context)
    } finally {
      await context.close()
      rmSync(profile, { recursive: true, force: true })
    }
    return
  }
  const browser = await chromium.launch(options)
  try {
    const users = accounts.flatMap((a, i) => (i % 2 ? [] : [[a, accounts[i + 1]]]))
    await Promise.all(users.map(async ([username, password]) => {
      if (mode === 'forms') return forms(browser, [username, password])
      return windows(await browser.newContext({ httpCredentials: { username, password } }), username)
    }))
  } finally {
    await browser.close()
  }
}

main().then(() => process.exit(0), (error) => {
  console.error(error)
  process.exit(1)
})

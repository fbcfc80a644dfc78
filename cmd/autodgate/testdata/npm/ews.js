// Reads the inbox with ews-javascript-api over NTLM, waits for an event of a streaming subscription, and prints a line of JSON for each
// thing seen.
//
// usage: node ews.js ADDRESS LOGIN PASSWORD
//
// ADDRESS is host:port that every name leads to. NODE_EXTRA_CA_CERTS names the CA.

const dns = require('dns')
const net = require('net')
const ews = require('ews-javascript-api')
const { XhrApi } = require('@ewsjs/xhr')

const [address, login, password] = process.argv.slice(2)
const [host, port] = [address.slice(0, address.lastIndexOf(':')), address.slice(address.lastIndexOf(':') + 1)]
dns.lookup = (name, options, done) => {
  if (typeof options === 'function') [options, done] = [{}, options]
  options.all ? done(null, [{ address: host, family: 4 }]) : done(null, host, 4)
}
const connect = net.Socket.prototype.connect
net.Socket.prototype.connect = function (...args) {
  const options = args[0][0] || args[0] // as normalised by net.connect
  if (options.port == 443) options.port = port
  return connect.apply(this, args)
}

const print = (what) => console.log(JSON.stringify(what))

function service() {
  const s = new ews.ExchangeService(ews.ExchangeVersion.Exchange2016)
  s.Url = new ews.Uri('https://mail.contoso.com/EWS/Exchange.asmx')
  s.Credentials = new ews.WebCredentials(login, password)
  s.XHRApi = new XhrApi({ proxy: false }).useNtlmAuthentication(login, password)
  return s
}

async function main() {
  const exchange = service()
  const folder = await ews.Folder.Bind(exchange, ews.WellKnownFolderName.Inbox)
  print({ folder: folder.DisplayName, count: folder.TotalCount })
  const found = await exchange.FindItems(ews.WellKnownFolderName.Inbox, new ews.ItemView(10))
  for (const item of found.Items) print({ subject: item.Subject })

  const subscription = await exchange.SubscribeToStreamingNotifications(
    [new ews.FolderId(ews.WellKnownFolderName.Inbox)], ews.EventType.NewMail)
  const stream = new ews.StreamingSubscriptionConnection(exchange, 1)
  stream.AddSubscription(subscription)
  const closed = new Promise((resolve, reject) => {
    stream.OnNotificationEvent.push((_, event) => {
      for (const e of event.Events) print({ event: ews.EventType[e.EventType], item: e.ItemId.UniqueId })
      subscription.Unsubscribe().catch(reject) // what ends the stream
    })
    stream.OnDisconnect.push((_, event) => resolve(event))
    stream.OnSubscriptionError.push((_, event) => reject(event.Exception))
  })
  stream.Open().catch(() => {}) // settles for errors only, which the stream reports as well
  await closed
  print({ closed: true })
}

main().then(() => process.exit(0), (error) => {
  console.error(error)
  process.exit(1)
})

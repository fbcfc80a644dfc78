// Finds the settings of addresses with the AutodiscoverService of ews-javascript-api, from nothing but the address: it looks for a host that
// says that it speaks SOAP, asks it, and follows redirects. Prints a line of JSON for each answer.
//
// usage: node autodiscover.js HTTPS HTTP LOGIN PASSWORD ADDRESS...
//
// HTTPS and HTTP are host:port that every name leads to. NODE_EXTRA_CA_CERTS names the CA.

const dns = require('dns')
const net = require('net')
const ews = require('ews-javascript-api')

const [https, http, login, password, ...addresses] = process.argv.slice(2)
const portOf = (address) => address.slice(address.lastIndexOf(':') + 1)
const host = https.slice(0, https.lastIndexOf(':'))
dns.lookup = (name, options, done) => {
  if (typeof options === 'function') [options, done] = [{}, options]
  options.all ? done(null, [{ address: host, family: 4 }]) : done(null, host, 4)
}
const connect = net.Socket.prototype.connect
net.Socket.prototype.connect = function (...args) {
  const options = args[0][0] || args[0] // as normalised by net.connect
  if (options.port == 443) options.port = portOf(https)
  if (options.port == 80) options.port = portOf(http)
  return connect.apply(this, args)
}

const names = ['UserDisplayName', 'UserDN', 'ExternalEwsUrl', 'CasVersion', 'ExternalWebClientUrls', 'ExternalUMUrl']

async function main() {
  for (const address of addresses) {
    const service = new ews.AutodiscoverService(ews.ExchangeVersion.Exchange2013)
    service.Credentials = new ews.WebCredentials(login, password)
    service.RedirectionUrlValidationCallback = (url) => url.startsWith('https://')
    const answer = await service.GetUserSettings(address, names.map((name) => ews.UserSettingName[name]))
    const get = (name) => answer.GetSettingValue(ews.UserSettingName[name])
    const owa = get('ExternalWebClientUrls')
    console.log(JSON.stringify({
      asked: address, address: answer.SmtpAddress, code: ews.AutodiscoverErrorCode[answer.ErrorCode], url: service.Url && service.Url.ToString(),
      name: get('UserDisplayName'), dn: get('UserDN'), ews: get('ExternalEwsUrl'), version: get('CasVersion'),
      owa: owa && owa.Urls.map((one) => one.Url), lacks: answer.UserSettingErrors.map((one) => one.SettingName),
    }))
  }
}

main().then(() => process.exit(0), (error) => {
  console.error(error)
  process.exit(1)
})

// A js-libp2p peer that a test drives: one JSON command a line on stdin, one JSON answer a line on
// stdout. It serves four protocols and can act as the client of each. It ends with its stdin.
//
// node peer.mjs LISTEN [ROLES]: ROLES is JSON with any of
//   relay: true             carries circuits; {limited: false} as long as they like
//   circuit: [ADDR, ...]    dials over relays, and takes a place at each of these
//   kad: {protocol, client} takes part in the DHT under that protocol id; client: serves nobody
//   dcutr: true             turns relayed connections into direct ones
//   announce: [ADDR, ...]   says that it is there too
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { dcutr } from '@libp2p/dcutr'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

const ECHO = '/covey-test/echo/1' // sends back what comes, ends when the other side ends
const NETNS_ECHO = '/test/echo/1' // the same, under the name that tests/netns/peer.py uses
const COUNT = '/covey-test/count/1' // reads to the end, then answers how much it was (u64 BE)
const RESET = '/covey-test/reset/1' // resets at the first byte
const HOLD = '/covey-test/hold/1' // reads; tells the test how the stream ended
// Without the last it keeps its own protocols off connections that a relay limits.
const STREAMS = { maxInboundStreams: 2048, maxOutboundStreams: 2048, runOnLimitedConnection: true }

const roles = JSON.parse(process.argv[3] ?? '{}')
const services = { ping: ping(), identify: identify(), identifyPush: identifyPush() }
if (roles.relay != null) {
  services.relay = circuitRelayServer({ reservations: { applyDefaultLimit: roles.relay.limited !== false } })
}
if (roles.dcutr) services.dcutr = dcutr()
if (roles.kad != null) {
  services.kad = kadDHT({
    protocol: roles.kad.protocol,
    clientMode: roles.kad.client === true, // the default waits for AutoNAT's word
    peerInfoMapper: passthroughMapper, // the default leaves loopback addresses out
    validators: { covey: async () => {}, test: async () => {} },
    selectors: { covey: () => 0, test: () => 0 }
  })
}

const say = (message) => process.stdout.write(JSON.stringify(message) + '\n')
const bytesOf = (chunk) => (chunk.subarray != null ? chunk.subarray() : chunk)
const pattern = (size) => Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 8)) & 0xff)
const digest = (data) => createHash('sha256').update(data).digest('hex')

const node = await createLibp2p({
  addresses: {
    listen: [process.argv[2], ...(roles.circuit ?? []).map((relay) => `${relay}/p2p-circuit`)].filter(Boolean),
    appendAnnounce: roles.announce ?? []
  },
  transports: [tcp(), ...(roles.circuit != null ? [circuitRelayTransport()] : [])],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  // The default takes five connections a second of one address; the tests all come from one.
  connectionManager: { inboundConnectionThreshold: 1000 },
  services
})

const identified = new Map()
const waiting = new Map()
node.addEventListener('peer:identify', (event) => {
  const found = {
    agent: event.detail.agentVersion,
    version: event.detail.protocolVersion,
    protocols: event.detail.protocols,
    addrs: event.detail.listenAddrs.map(String),
    observed: event.detail.observedAddr?.toString() ?? null
  }
  const id = event.detail.peerId.toString()
  identified.set(id, found)
  for (const resolve of waiting.get(id) ?? []) resolve(found)
  waiting.delete(id)
})
node.addEventListener('peer:disconnect', (event) => say({ event: 'down', peer: event.detail.toString() }))

async function send (stream, data) {
  for (let at = 0; at < data.length; at += 16384) {
    if (!stream.send(data.subarray(at, at + 16384))) await stream.onDrain()
  }
}

// The library's own iterator waits for 'remoteCloseWrite', which has already passed when the other
// side's end arrived before its handler ran; 'end' and `readableEnded` cannot be missed.
async function read (stream, take) {
  await new Promise((resolve, reject) => {
    let taking = Promise.resolve()
    stream.addEventListener('message', (event) => {
      const chunk = Uint8Array.from(bytesOf(event.data))
      taking = taking.then(() => take(chunk))
      taking.catch(reject)
    })
    stream.addEventListener('end', () => taking.then(resolve, reject), { once: true })
    stream.addEventListener('close', (event) => {
      if (event.error != null) reject(event.error)
      else taking.then(resolve, reject)
    }, { once: true })
    if (stream.readableEnded) resolve()
  })
}

async function readAll (stream) {
  const chunks = []
  await read(stream, (chunk) => { chunks.push(chunk) })
  return Buffer.concat(chunks)
}

for (const name of [ECHO, NETNS_ECHO]) {
  await node.handle(name, async (stream) => {
    try {
      await read(stream, (chunk) => send(stream, chunk))
      await stream.close()
    } catch (error) {
      stream.abort(error)
    }
  }, STREAMS)
}

await node.handle(COUNT, async (stream) => {
  const count = (await readAll(stream)).length
  const answer = Buffer.alloc(8)
  answer.writeBigUInt64BE(BigInt(count))
  await send(stream, answer)
  await stream.close()
}, STREAMS)

await node.handle(RESET, async (stream) => {
  stream.addEventListener('message', () => stream.abort(new Error('as asked')), { once: true })
}, STREAMS)

await node.handle(HOLD, async (stream) => {
  stream.addEventListener('close', (event) => say({ event: 'hold', reset: event.error != null }), { once: true })
  stream.addEventListener('message', () => say({ event: 'held' }), { once: true })
}, STREAMS)

async function exchange (target, size) {
  const stream = await node.dialProtocol(target, ECHO, STREAMS)
  const data = pattern(size)
  const back = readAll(stream)
  await send(stream, data)
  await stream.close()
  const received = await back
  if (digest(received) !== digest(data)) throw new Error(`${received.length} of ${size} bytes came back`)
}

// Keys and values of the DHT travel as hex.
const bytes = (text) => Uint8Array.from(Buffer.from(text, 'hex'))
const cid = (key) => CID.createV1(0x55, Digest.decode(bytes(key)))
const patience = () => ({ signal: AbortSignal.timeout(20000) })
const told = (peer) => ({ id: peer.id.toString(), addrs: peer.multiaddrs.map(String) })

// How many nodes took a write. An error of a query is reported, not thrown, by the library.
async function taken (events, name) {
  let nodes = 0
  for await (const event of events) {
    if (event.name === 'PEER_RESPONSE' && event.messageName === name) nodes++
    if (event.name === 'QUERY_ERROR') throw event.error
  }
  return { nodes }
}

const commands = {
  async dial ({ addr }) {
    const connection = await node.dial(multiaddr(addr), { signal: AbortSignal.timeout(10000) })
    return { encryption: connection.encryption, muxer: connection.multiplexer, peer: connection.remotePeer.toString() }
  },
  async identify ({ peer }) {
    if (identified.has(peer)) return identified.get(peer)
    return await new Promise((resolve) => waiting.set(peer, [...(waiting.get(peer) ?? []), resolve]))
  },
  async ping ({ addr, count }) {
    const times = []
    for (let i = 0; i < count; i++) times.push(await node.services.ping.ping(multiaddr(addr)))
    return { times }
  },
  async echo ({ addr, size }) {
    await exchange(multiaddr(addr), size)
    return { size }
  },
  async streams ({ addr, count, size }) {
    await Promise.all(Array.from({ length: count }, () => exchange(multiaddr(addr), size)))
    return { count }
  },
  async halfclose ({ addr, size }) {
    const stream = await node.dialProtocol(multiaddr(addr), COUNT, STREAMS)
    const answer = readAll(stream)
    await send(stream, pattern(size))
    await stream.close() // closes the writing half; the answer comes after it
    return { counted: Number((await answer).readBigUInt64BE()) }
  },
  async send_reset ({ addr }) {
    const stream = await node.dialProtocol(multiaddr(addr), HOLD, STREAMS)
    await send(stream, pattern(1000))
    await new Promise((resolve) => { commands.go_on = async () => { resolve(); return {} } })
    stream.abort(new Error('as asked'))
    return {}
  },
  async get_reset ({ addr }) {
    const stream = await node.dialProtocol(multiaddr(addr), RESET, STREAMS)
    const closed = new Promise((resolve) => stream.addEventListener('close', resolve, { once: true }))
    await send(stream, pattern(10))
    const event = await closed
    return { reset: event.error != null }
  },
  async addrs () {
    return { addrs: node.getMultiaddrs().map(String) }
  },
  async listen ({ addr }) {
    await node.components.transportManager.listen([multiaddr(addr)])
    return {}
  },
  async paths ({ peer }) {
    const found = node.getConnections().filter((one) => one.remotePeer.toString() === peer)
    return { paths: found.map((one) => (one.remoteAddr.toString().includes('/p2p-circuit') ? 'relay' : 'direct')) }
  },
  async kad_knows ({ peer }) { // waits until it would name that peer to others
    const table = node.services.kad.routingTable
    while (await table.find(peerIdFromString(peer)) == null) await new Promise((resolve) => setTimeout(resolve, 10))
    return {}
  },
  async kad_find ({ peer }) {
    for await (const event of node.services.kad.findPeer(peerIdFromString(peer), { useCache: false, ...patience() })) {
      if (event.name === 'FINAL_PEER') return told(event.peer)
    }
    throw new Error('not found')
  },
  async kad_put ({ key, value }) {
    return await taken(node.services.kad.put(bytes(key), bytes(value), patience()), 'PUT_VALUE')
  },
  async kad_get ({ key }) {
    for await (const event of node.services.kad.get(bytes(key), patience())) {
      if (event.name === 'VALUE') return { value: Buffer.from(event.value).toString('hex') }
    }
    throw new Error('no value')
  },
  async kad_provide ({ key }) {
    return await taken(node.services.kad.provide(cid(key), patience()), 'ADD_PROVIDER')
  },
  async kad_providers ({ key }) {
    const found = []
    for await (const event of node.services.kad.findProviders(cid(key), patience())) {
      if (event.name === 'PROVIDER') found.push(...event.providers.map(told))
    }
    return { found }
  },
  async forgotten ({ peer }) {
    const here = () => node.getConnections().some((one) => one.remotePeer.toString() === peer)
    while (here()) await new Promise((resolve) => setTimeout(resolve, 10))
    return {}
  },
  async stop () {
    await node.stop()
    setImmediate(() => process.exit(0))
    return {}
  }
}

const input = createInterface({ input: process.stdin })
input.on('line', async (line) => {
  const { n, act, ...rest } = JSON.parse(line)
  try {
    say({ n, ok: await commands[act](rest) })
  } catch (error) {
    say({ n, error: `${error.name}: ${error.message}` })
  }
})
input.on('close', () => process.exit(0))
say({ ready: { id: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) } })

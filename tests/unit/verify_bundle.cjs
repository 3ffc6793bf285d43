// Verifies a Sigstore bundle with sigstore's own packages, without a transparency log, and prints the statement.
// Usage: node verify_bundle.cjs DIRECTORY_OF_NODE_MODULES BUNDLE PUBLIC_KEY
const { readFileSync } = require('node:fs');
const { createPublicKey } = require('node:crypto');
const { createRequire } = require('node:module');

const [home, bundlePath, keyPath] = process.argv.slice(2);
const packages = createRequire(`${home}/`);
const { bundleFromJSON } = packages('@sigstore/bundle');
const { Verifier, toSignedEntity, toTrustMaterial } = packages('@sigstore/verify');

const bundle = bundleFromJSON(JSON.parse(readFileSync(bundlePath)));
const publicKey = createPublicKey(readFileSync(keyPath));
const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const trust = toTrustMaterial(nobody, () => ({ publicKey, validFor: () => true }));
const thresholds = { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 };
new Verifier(trust, thresholds).verify(toSignedEntity(bundle));
process.stdout.write(bundle.content.dsseEnvelope.payload);

"""`kvasir-runtime fetch URI DEST`: brings a model's or an adapter's files to a folder before the engine starts.

Runs as an init container (image of the runtime; torch is never imported):

    command: [kvasir-runtime, fetch, s3://models/llama-3-8b, /models/llama-3-8b]
    args:    [--sha256, 9f86…, --secret-dir, /var/run/secrets/kvasir/model]

URI     s3://bucket/prefix             every allowed object below the prefix
        hf://org/name@revision         the revision's files (default: main), from the hub or a mirror of it
        https://host/folder            `SHA256SUMS` names the files where there is one; else config.json,
                                       the weights it or the index names, and the usual tokenizer files
        https://host/model.tar.gz      an archive (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz, .zip), unpacked safely
        file:///path                   a folder that is copied; one that is mounted needs no fetching
        pvc://claim/path               is mounted by the operator: fetching it is refused with that advice
DEST    folder that receives the files; made when missing

Only files that a model consists of are fetched: *.safetensors, *.json, *.model, *.txt, *.jinja, tokenizer*. Pickled
weights never are. A file appears under its name only when whole and verified: against `SHA256SUMS`, the hub's own
digests, its length, and the header of safetensors files. Broken transfers are continued where they broke, also by the
next container. Last of all `DEST/.complete` is written, a JSON object `{uri, digest, files: {name: {size, sha256}}}`;
a restarted init container that finds it valid fetches nothing. `digest` is the SHA-256 of the listing that
`sha256sum $(ls)` prints, sorted by name: `--sha256` is compared with it (with the archive's own SHA-256 for archives).

Environment, of the container or as files of `--secret-dir` (a mounted Secret; files take precedence):

    s3      AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION AWS_ENDPOINT_URL AWS_SKIP_SIGNATURE;
            web identities and instance roles work as everywhere
    hf      HF_TOKEN HF_ENDPOINT
    https   KVASIR_FETCH_TOKEN, sent as a bearer token, never to another host
    all     SSL_CERT_FILE, HTTPS_PROXY, NO_PROXY; KVASIR_FETCH_MAX_SIZE, KVASIR_FETCH_WORKERS, KVASIR_FETCH_RETRIES,
            KVASIR_FETCH_TIMEOUT, KVASIR_FETCH_PROGRESS stand for the flags of these names

Exit code 0 when the model is there, 1 when it is not, 2 for a bad command line; then a failure report
(`kvasir_runtime.contract.failures`) with cause, message and remedy is the termination message.
"""

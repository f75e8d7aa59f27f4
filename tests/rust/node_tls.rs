//! TLS, with certificates made for the occasion.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podlink::clock::Clock;
use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::store::RedisStore;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::node::{get, is, recovers, set, store};
use crate::server::{Kind, PATIENCE, Server, address};
use crate::stage::pod;

/// A certificate authority, and a directory for what it signs.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        // OpenSSL takes a certificate whose issuer has its own name for a self-signed one.
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self {
            issuer,
            dir: dir.join(name),
        };
        std::fs::create_dir_all(&authority.dir).unwrap();
        std::fs::write(authority.file("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Signs a certificate for these hosts; returns the files of the certificate and its key.
    fn sign(&self, name: &str, hosts: &[&str]) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(hosts).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_file, key_file) = (format!("{name}.pem"), format!("{name}.key"));
        std::fs::write(self.file(&cert_file), certificate.pem()).unwrap();
        std::fs::write(self.file(&key_file), key.serialize_pem()).unwrap();
        (self.file(&cert_file), self.file(&key_file))
    }
}

/// A server that speaks TLS for these hosts, and the authority that says so. `demand` is whether
/// clients need a certificate.
async fn server(hosts: &[&str], demand: &str) -> (Server, Authority) {
    // A directory of its own, because the certificates come before the server.
    let scratch = Server::stopped(Kind::Redis, &[]);
    let authority = Authority::new(scratch.dir(), "authority");
    let (cert, key) = authority.sign("server", hosts);
    let ca = authority.file("ca.pem");
    let files = [
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ];
    let mut server = scratch;
    server.set_args(&[&files[..], &["--tls-auth-clients", demand]].concat());
    server.speak_tls();
    server.restart().await;
    (server, authority)
}

fn over_tls(server: &Server, host: &str, files: &[(&str, &str)]) -> std::sync::Arc<RedisStore> {
    store(&address(&format!("rediss://{host}:{}", server.port), files))
}

/// A call that could take its time, but must not.
async fn refused_at_once(store: &RedisStore) -> Error {
    let began = Clock::System.now();
    let error = set(store, PATIENCE).await.unwrap_err();
    let took = Clock::System.now().since(began);
    assert!(took < PATIENCE / 4, "it took {took:?}");
    error
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted() {
    let (server, authority) = server(&["localhost", "127.0.0.1"], "no").await;
    for host in ["localhost", "127.0.0.1"] {
        let store = over_tls(&server, host, &[("ca_file", &authority.file("ca.pem"))]);
        set(&store, PATIENCE).await.unwrap();
        assert_eq!(get(&store, PATIENCE).await.unwrap(), Some(pod(1)));
    }
}

#[tokio::test]
async fn a_foreign_authority_and_a_foreign_name_are_refused_at_once() {
    let (server, authority) = server(&["localhost"], "no").await;
    let foreign = Authority::new(server.dir(), "foreign");
    let (theirs, ours) = (foreign.file("ca.pem"), authority.file("ca.pem"));
    for (host, files) in [
        ("localhost", &[("ca_file", theirs.as_str())][..]),
        // Whatever this machine trusts, it is not an authority made a moment ago.
        ("localhost", &[]),
        ("127.0.0.1", &[("ca_file", &ours)]),
    ] {
        let error = refused_at_once(&over_tls(&server, host, files)).await;
        assert_eq!(error.outcome(), Some(WriteOutcome::NotSent));
        // A machine may come without any authorities; then the file is what is missing.
        let kinds = [ErrorKind::StoreUnavailable, ErrorKind::InvalidParameter];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("certificate"), "the reason is told: {text}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_it() {
    let (server, authority) = server(&["localhost"], "yes").await;
    let ca = authority.file("ca.pem");
    let (cert, key) = authority.sign("client", &["client"]);
    let files = [
        ("ca_file", &*ca),
        ("cert_file", &*cert),
        ("key_file", &*key),
    ];
    set(&over_tls(&server, "localhost", &files), PATIENCE)
        .await
        .unwrap();

    let without = over_tls(&server, "localhost", &[("ca_file", &ca)]);
    let error = get(&without, Duration::from_millis(500)).await.unwrap_err();
    is(&error, ErrorKind::StoreUnavailable, None);
    let stranger = Authority::new(server.dir(), "stranger");
    let (cert, key) = stranger.sign("client", &["client"]);
    let files = [
        ("ca_file", &*ca),
        ("cert_file", &*cert),
        ("key_file", &*key),
    ];
    let error = get(
        &over_tls(&server, "localhost", &files),
        Duration::from_millis(500),
    )
    .await;
    is(&error.unwrap_err(), ErrorKind::StoreUnavailable, None);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_and_may_be_mended() {
    let (server, authority) = server(&["localhost"], "yes").await;
    let ca = authority.file("ca.pem");
    let (cert, key) = authority.sign("client", &["client"]);
    let (_, other_key) = authority.sign("other", &["other"]);
    let (missing, empty) = (authority.file("missing.pem"), authority.file("empty.pem"));
    std::fs::write(&empty, "").unwrap();
    let all = |ca, cert, key| [("ca_file", ca), ("cert_file", cert), ("key_file", key)];
    for (files, culprit) in [
        (all(&missing, &cert, &key), &missing),
        (all(&empty, &cert, &key), &empty),
        (all(&ca, &missing, &key), &missing),
        (all(&ca, &cert, &missing), &missing),
        (all(&ca, &cert, &cert), &cert),
        (all(&ca, &cert, &other_key), &cert),
    ] {
        let files = files.map(|(name, file): (&str, &String)| (name, file.as_str()));
        let error = refused_at_once(&over_tls(&server, "localhost", &files)).await;
        is(
            &error,
            ErrorKind::InvalidParameter,
            Some(WriteOutcome::NotSent),
        );
        assert!(
            error.to_string().contains(culprit.as_str()),
            "{error} does not name {culprit}"
        );
    }
    // The files are read for every connection: what is mended is seen.
    let files = [
        ("ca_file", &*missing),
        ("cert_file", &*cert),
        ("key_file", &*key),
    ];
    let store = over_tls(&server, "localhost", &files);
    refused_at_once(&store).await;
    std::fs::copy(&ca, &missing).unwrap();
    let mended = async || get(&store, PATIENCE).await.ok();
    crate::server::eventually("the file is read again", mended).await;
}

#[tokio::test]
async fn a_rotated_certificate_is_used_by_the_next_connection() {
    let (mut server, authority) = server(&["localhost"], "yes").await;
    let (cert, key) = authority.sign("client", &["client"]);
    let (bundle, ca) = (authority.file("bundle.pem"), authority.file("ca.pem"));
    std::fs::copy(&ca, &bundle).unwrap();
    let files = [
        ("ca_file", &*bundle),
        ("cert_file", &*cert),
        ("key_file", &*key),
    ];
    let store = over_tls(&server, "localhost", &files);
    set(&store, PATIENCE).await.unwrap();

    // A new authority, a new server certificate, a new client certificate under the old names.
    let next = Authority::new(server.dir(), "next");
    let (next_cert, next_key) = next.sign("server", &["localhost"]);
    let (client_cert, client_key) = next.sign("client", &["client"]);
    std::fs::copy(&client_cert, &cert).unwrap();
    std::fs::copy(&client_key, &key).unwrap();
    std::fs::copy(next.file("ca.pem"), &bundle).unwrap();
    server.kill();
    let ca = next.file("ca.pem");
    let files = ["--tls-cert-file", &next_cert, "--tls-key-file", &next_key];
    server.set_args(
        &[
            &files[..],
            &["--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"],
        ]
        .concat(),
    );
    server.restart().await;
    recovers(&store).await;
}

#[tokio::test]
async fn speaking_tls_to_one_who_does_not_and_the_reverse_is_an_error() {
    let (speaks, authority) = server(&["localhost"], "no").await;
    let plain = Server::start(Kind::Redis).await;
    let time = Duration::from_millis(500);
    let to_plain = over_tls(
        &plain,
        "localhost",
        &[("ca_file", &authority.file("ca.pem"))],
    );
    let to_tls = store(&address(&format!("redis://127.0.0.1:{}", speaks.port), &[]));
    for store in [to_plain, to_tls] {
        let error = get(&store, time).await.unwrap_err();
        is(&error, ErrorKind::StoreUnavailable, None);
    }
}

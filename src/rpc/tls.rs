//! TLS of both ends. The crypto provider is passed here, not installed for the whole process: other
//! libraries in the same Python process keep their own choice.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};

use crate::config::{ServerTls, TlsFiles};
use crate::error::{Error, ErrorKind, Result};

/// gRPC is HTTP/2 only.
const ALPN: &[u8] = b"h2";

/// The TLS configuration of a client. It blocks on the file system.
pub(super) fn client(files: &TlsFiles) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS cannot be set up").caused_by(error))?
        .with_root_certificates(roots(files.ca_file.as_deref())?);
    let mut config = match (&files.cert_file, &files.key_file) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates("cert_file", cert)?, private_key(key)?)
            .map_err(|error| {
                bad_file("cert_file", cert, "its key does not fit").caused_by(error)
            })?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The TLS configuration of a server. It blocks on the file system.
pub(super) fn server(files: &ServerTls) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS cannot be set up").caused_by(error))?;
    let builder = match &files.client_ca_file {
        Some(path) => {
            let roots = Arc::new(authorities("client_ca_file", path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| {
                bad_file("client_ca_file", path, "it cannot be used").caused_by(error)
            })?)
        }
        None => builder.with_no_client_auth(),
    };
    let chain = certificates("cert_file", &files.cert_file)?;
    let mut config = builder
        .with_single_cert(chain, private_key(&files.key_file)?)
        .map_err(|error| {
            bad_file("cert_file", &files.cert_file, "its key does not fit").caused_by(error)
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore> {
    if let Some(path) = ca_file {
        return authorities("ca_file", path);
    }
    let mut roots = RootCertStore::empty();
    // A system's store may hold certificates that rustls does not accept; the others are used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(unusable(
            "this system has no certificate authorities; name one with ca_file",
        ));
    }
    Ok(roots)
}

fn authorities(what: &'static str, path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, path)? {
        roots.add(certificate).map_err(|error| {
            bad_file(what, path, "a certificate is not usable").caused_by(error)
        })?;
    }
    Ok(roots)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad_file(what, path, "it cannot be read as PEM").caused_by(error))?;
    if found.is_empty() {
        return Err(bad_file(what, path, "it holds no certificate"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| bad_file("key_file", path, "it holds no readable key").caused_by(error))
}

fn bad_file(what: &'static str, path: &Path, why: &str) -> Error {
    unusable(&format!("{what} {}: {why}", path.display()))
        .with("parameter", what)
        .with("file", path.display())
}

fn unusable(why: &str) -> Error {
    Error::new(ErrorKind::InvalidParameter, why)
}

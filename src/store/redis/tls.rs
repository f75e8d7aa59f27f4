//! TLS: the files are read for every connection, so that rotated files take effect.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio_rustls::TlsConnector;

use crate::config::TlsFiles;
use crate::error::{Error, ErrorKind, Result};

/// Reads the files and builds a connector. It blocks on the file system.
///
/// The crypto provider is passed here, not installed for the whole process: other libraries in
/// the same Python process keep their own choice.
pub(super) fn connector(files: &TlsFiles) -> Result<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS cannot be set up").caused_by(error))?
        .with_root_certificates(roots(files.ca_file.as_deref())?);
    let config = match (&files.cert_file, &files.key_file) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates("cert_file", cert)?, private_key(key)?)
            .map_err(|error| {
                bad_file("cert_file", cert, "its key does not fit").caused_by(error)
            })?,
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        for certificate in certificates("ca_file", path)? {
            roots.add(certificate).map_err(|error| {
                bad_file("ca_file", path, "a certificate is not usable").caused_by(error)
            })?;
        }
        return Ok(roots);
    }
    // A system's store may hold certificates that rustls does not accept; the others are used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(unusable(
            "this system has no certificate authorities; name one with ca_file",
        ));
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

//! The TLS certificate of the network API, which is read again when its files have changed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::manifest::config::TlsFiles;

/// When the certificate and the key were last written.
type Stamp = [Option<SystemTime>; 2];

/// The two files, and what was last read of them.
pub(super) struct Tls {
    files: TlsFiles,
    read: Mutex<(Stamp, Option<TlsAcceptor>)>,
}

impl Tls {
    pub(super) fn new(files: TlsFiles) -> Tls {
        Tls { files, read: Mutex::new(([None; 2], None)) }
    }

    /// The acceptor for the files as they are now. Where they can't be used, it is the one from before;
    /// `None` where there never was one.
    pub(super) async fn acceptor(self: &Arc<Self>) -> Option<TlsAcceptor> {
        let tls = Arc::clone(self);
        tokio::task::spawn_blocking(move || tls.current()).await.ok().flatten()
    }

    fn current(&self) -> Option<TlsAcceptor> {
        let written = |path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let stamp = [written(&self.files.certificate), written(&self.files.key)];
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0 != stamp {
            match configured(&self.files) {
                Ok(config) => *read = (stamp, Some(TlsAcceptor::from(Arc::new(config)))),
                Err(why) => {
                    let certificate = self.files.certificate.display();
                    tracing::error!("the certificate {certificate} can't be used: {why}");
                    read.0 = stamp;
                }
            }
        }
        read.1.clone()
    }
}

/// Checks whether the files can be used; `Err` says why not.
pub fn check(files: &TlsFiles) -> Result<(), String> {
    configured(files).map(drop)
}

fn configured(files: &TlsFiles) -> Result<ServerConfig, String> {
    let of = |path: &std::path::Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| of(&files.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| of(&files.key, &error))?;
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| of(&files.certificate, &error))
}

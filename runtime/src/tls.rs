//! The one provider of cryptography that all TLS of a process uses.

/// Installs it; again is fine. A client that speaks TLS panics where there is none, so whoever makes one calls this first.
pub fn install() {
    // The only error is that one is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

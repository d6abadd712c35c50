//! The address for callers: one listening socket a thread, between which the kernel divides connections; or one for all, from a holder.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel keeps for a socket until they are accepted; it may hold fewer.
const BACKLOG: i32 = 4096;

/// Sockets that listen on one address.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) sockets: Vec<TcpListener>,
    pub(crate) address: SocketAddr,
    /// Whether a holder keeps the socket open when this router has gone: then whoever waits in it waits for the next one.
    pub(crate) held: bool,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody listens there.
    #[error("{0} is already in use: stop what listens there, or choose another address with --address")]
    InUse(SocketAddr),
    /// The port is not for everybody.
    #[error("{0} needs the right to listen below port 1024: choose a port from 1024 with --address")]
    Forbidden(SocketAddr),
    /// Not an address of this machine.
    #[error("{0} is no address of this machine: choose another with --address")]
    NotOurs(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

impl Listeners {
    /// Listens on an address with one socket for each of `threads`; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// Fails when somebody else listens there, or the address cannot be had.
    pub fn bind(address: SocketAddr, threads: usize) -> Result<Self, Error> {
        let error = |error| explain(address, error);
        if address.port() != 0 {
            // Sockets that share an address would not notice that another program of this user shares it too: this one does.
            listen(address, false).map_err(error)?;
        }
        let first = listen(address, true).map_err(error)?;
        let address = first.local_addr().map_err(error)?;
        let mut sockets = vec![first];
        for _ in 1..threads {
            sockets.push(listen(address, true).map_err(error)?);
        }
        Ok(Self { sockets, address, held: false })
    }

    /// The address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Listens on an address for a holder. A router may still have the socket of the holder before, which is no reason to stop.
///
/// # Errors
///
/// Fails when a program of another kind or another user listens there, or the address cannot be had.
pub(crate) fn listen_beside(address: SocketAddr) -> Result<TcpListener, Error> {
    if address.port() != 0 && listen(address, false).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
        tracing::warn!(%address, "a program of this user listens there already: a router with the socket of the last holder, or a stranger");
    }
    listen(address, true).map_err(|error| explain(address, error))
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the last run that linger in the kernel do not keep the address.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn explain(address: SocketAddr, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::InUse(address),
        io::ErrorKind::PermissionDenied => Error::Forbidden(address),
        io::ErrorKind::AddrNotAvailable => Error::NotOurs(address),
        _ => Error::Other(address, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn every_thread_has_a_socket_on_the_same_address() {
        let listeners = Listeners::bind(FREE, 3).unwrap();
        assert_ne!(listeners.address().port(), 0);
        let addresses: Vec<_> = listeners.sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(addresses, [listeners.address(); 3]);
    }

    #[test]
    fn an_address_in_use_is_said_in_words_even_when_it_could_be_shared() {
        let first = Listeners::bind(FREE, 2).unwrap();
        let error = Listeners::bind(first.address(), 2).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} is already in use", first.address())), "{error}");
        let stranger = TcpListener::bind(FREE).unwrap();
        assert!(matches!(Listeners::bind(stranger.local_addr().unwrap(), 1), Err(Error::InUse(_))));
    }

    #[test]
    fn an_address_of_another_machine_is_said_in_words() {
        let error = Listeners::bind(SocketAddr::from(([192, 0, 2, 1], 8080)), 1).unwrap_err();
        assert!(error.to_string().contains("no address of this machine"), "{error}");
    }
}

//! The holder of the listening socket: it binds the address for callers, and hands the socket to every router that asks for it.
//!
//! While no router is there, connections wait in the kernel; so a router can be restarted, or replaced by a newer one, without a caller
//! who is refused. The holder never accepts a connection and reads no byte of one: it is not on the path of a request.
//!
//! It knows the address and a unix socket, at which whoever may open it gets the listening socket. It knows no bus and no routes.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use runtime::shutdown::{Tasks, on_signal};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    held,
    listener::{Error as ListenError, listen_beside},
};

/// How long a router may take to take what it asked for.
const HANDING: Duration = Duration::from_secs(5);
/// How many routers may have the socket at a time.
const ROUTERS: usize = 256;
/// What stands for the descriptor that is sent with it: a message without a byte carries none.
pub(crate) const TOKEN: u8 = b'k';

/// Holds the listening socket of routers, so that they can be restarted while callers connect.
#[derive(Debug, clap::Args)]
pub struct Hold {
    /// Address for callers
    #[arg(long, env = "KAAI_ROUTER_ADDRESS", default_value = "127.0.0.1:8080")]
    pub address: SocketAddr,
    /// Unix socket at which routers get the listening socket (their --held); its folder says who reaches it, and its group is this process's
    #[arg(long, env = "KAAI_ROUTER_HELD", value_name = "FILE")]
    pub held: PathBuf,
    /// Ask the holder at that unix socket whether it hands out its socket, and end: with 0 if it does (for health checks)
    #[arg(long)]
    pub is_ready: bool,
}

/// The socket cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address for callers cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Another holder is at the unix socket.
    #[error("another holder hands out its socket at {0}: stop it, or choose another file with --held")]
    Taken(PathBuf),
    /// The unix socket cannot be made.
    #[error("cannot make the unix socket {path}: {source}; choose another file with --held")]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is asked whether it is ready, and it is not.
    #[error(transparent)]
    NotReady(#[from] held::Error),
}

/// Binds the address and hands its socket out until SIGTERM or SIGINT; or, if that is asked, says whether a holder does.
///
/// # Errors
///
/// Fails when the address or the unix socket cannot be had, or no holder answers that should.
pub async fn hold(hold: Hold) -> Result<(), Error> {
    if hold.is_ready {
        return Ok(held::take(&hold.held).await.map(drop)?);
    }
    serve(&hold, None, on_signal()).await
}

/// The same until `shutdown`; `bound` is told the address in use.
pub(crate) async fn serve(
    hold: &Hold,
    bound: Option<tokio::sync::oneshot::Sender<SocketAddr>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let door = open_door(&hold.held).await?;
    let socket = Arc::new(listen_beside(hold.address)?);
    let address = socket.local_addr().map_err(|error| ListenError::Other(hold.address, error))?;
    let door = door.show()?;
    tracing::info!(%address, held = %hold.held.display(), "holding the listening socket");
    if let Some(bound) = bound {
        // Whoever asked may have lost interest.
        let _ = bound.send(address);
    }
    let (routers, room) = (Tasks::default(), Arc::new(Semaphore::new(ROUTERS)));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = door.listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(place)) = (accepted, room.clone().try_acquire_owned()) else {
            tracing::warn!("a router cannot be given the socket now: too many have it, or too many files are open");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (socket, shutdown) = (socket.clone(), shutdown.clone());
        routers.spawn(async move {
            let _place = place;
            tokio::select! {
                // A router that is restarted leaves in the middle; the next one comes by itself.
                () = hand_out(stream, &socket) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
    routers.wait().await;
    Ok(())
}

/// Gives the socket to one router, and stays connected: so each of both hears when the other has gone.
async fn hand_out(mut stream: UnixStream, socket: &TcpListener) {
    match timeout(HANDING, send(&stream, socket)).await {
        Ok(Ok(())) => tracing::debug!("a router has the listening socket"),
        Ok(Err(error)) => return tracing::warn!(%error, "a router could not be given the listening socket"),
        Err(_) => return tracing::warn!("a router asked for the listening socket and did not take it"),
    }
    // For as long as the router lives. It says nothing; whatever comes, or the end, ends this.
    let _ = stream.read(&mut [0]).await;
    tracing::debug!("a router has gone");
}

async fn send(stream: &UnixStream, socket: &TcpListener) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let descriptors = [socket.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("there is no room for a descriptor"));
            }
            sendmsg(stream, &[io::IoSlice::new(&[TOKEN])], &mut message, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

/// The unix socket, made under another name so that nobody finds it before it is right.
struct Door {
    listener: UnixListener,
    path: PathBuf,
    hidden: Option<PathBuf>,
}

/// Makes the unix socket, unless a holder lives there; what a dead one has left is replaced.
async fn open_door(path: &Path) -> Result<Door, Error> {
    let failed = |source| Error::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(failed(io::Error::other("there is another file of this name")));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(Error::Taken(path.to_owned())),
        _ => {}
    }
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    let door = Door { listener, path: path.to_owned(), hidden: Some(hidden.clone()) };
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(door)
}

impl Door {
    /// Gives it its name.
    fn show(mut self) -> Result<Self, Error> {
        if let Some(hidden) = self.hidden.take() {
            fs::rename(&hidden, &self.path).map_err(|source| Error::Socket { path: self.path.clone(), source })?;
        }
        Ok(self)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Nothing depends on it: what is left is replaced by the next holder.
        let _ = fs::remove_file(self.hidden.as_ref().unwrap_or(&self.path));
    }
}

//! Routers as processes on a listening socket that a holder keeps open: restarted, multiplied, and with another holder.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use proto::{
    deployer::Route,
    subject::{ROUTES, service_key},
};
use runtime::{
    shutdown::Tasks,
    testing::{Nats, free_port, until},
};
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    replica::{Replica, ok},
    world::{Kept, SCORE, SOON, ask, request, route, try_ask},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kaai-router");

/// A process that is ended when it is dropped.
struct Running(Child);

impl Running {
    fn start(args: &[&str]) -> Self {
        Self(Command::new(PROGRAM).args(args).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Ends it as a supervisor does, and gives the exit code.
    async fn stop(mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        until("it has ended", SOON, async || self.0.try_wait().unwrap()).await.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is fine too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bus with one service, and an address that is held.
struct Hall {
    nats: Nats,
    _replica: Replica,
    address: SocketAddr,
}

impl Hall {
    async fn new() -> Self {
        let nats = Nats::start().await;
        let deployer = nats.runtime("deployer").await;
        let routes = deployer.bus.bucket::<Route>(ROUTES).await.unwrap();
        let replica = Replica::unix("ridge-7-a", |_| async { ok("[206.1]") });
        let mut served = route(vec![replica.endpoint()]);
        served.requests.max_concurrent_per_replica = 8;
        routes.put(&service_key(&served.workspace, &served.service), &served).await.unwrap();
        Self { nats, _replica: replica, address: ([127, 0, 0, 1], free_port()).into() }
    }

    fn held(&self) -> PathBuf {
        self.nats.folder().join("listen.sock")
    }

    /// Starts a holder, and waits until it hands out its socket.
    async fn hold(&self) -> Running {
        let held = self.held().display().to_string();
        let holder = Running::start(&["hold", "--address", &self.address.to_string(), "--held", &held]);
        until("the holder is ready", SOON, async || {
            run(&["hold", "--held", &held, "--is-ready"]).status.success().then_some(())
        })
        .await;
        holder
    }

    /// Starts a router on the held socket, and waits until it is ready.
    async fn router(&self) -> (Running, SocketAddr) {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (text, held) = (admin.to_string(), self.held().display().to_string());
        let place = ["--bus", &self.nats.address(), "--admin-address", &text];
        let router = Running::start(&[&place[..], &["--held", &held, "--threads", "2"]].concat());
        let ready = ["--is-ready", "--admin-address", &text];
        until("the router is ready", SOON, async || run(&ready).status.success().then_some(())).await;
        (router, admin)
    }

    async fn is_answered(&self) {
        let answered = timeout(SOON, ask(self.address, request("POST", SCORE, "{}"))).await.expect("it does not hang");
        assert_eq!(answered.text(), "[206.1]");
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Callers that ask without a pause until told to stop, two on new connections and two on kept ones.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = Tasks::default();
        let callers = (0..4).map(|n| tasks.spawn(call(address, n % 2 == 0, over.clone(), answered.clone()))).collect();
        Self { over, answered, callers }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until so many more are answered.
    async fn more(&self, number: usize) {
        let before = self.answered();
        until("callers are answered", SOON, async || {
            assert!(self.callers.iter().all(|caller| !caller.is_finished()), "a caller's request was lost");
            (self.answered() >= before + number).then_some(())
        })
        .await;
    }

    /// Stops, and sees that no request was lost.
    async fn stop(self) {
        self.over.store(true, Ordering::SeqCst);
        for caller in self.callers {
            timeout(SOON, caller).await.expect("a caller is answered").unwrap();
        }
    }
}

async fn call(address: SocketAddr, keeps: bool, over: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    let mut kept: Option<Kept> = None;
    while !over.load(Ordering::SeqCst) {
        let asked = request("POST", SCORE, "{}");
        let answer = if keeps {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Kept::open(address).await,
            };
            let answer = connection.ask(asked).await.expect("a kept connection is answered");
            // A router that stops says so; the next request goes over another connection.
            kept = (answer.headers.get("connection").is_none_or(|value| value != "close")).then_some(connection);
            answer
        } else {
            try_ask(address, asked).await.expect("a new connection is answered")
        };
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "[206.1]"));
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_a_router_on_a_held_socket_is_restarted_again_and_again() {
    let hall = Hall::new().await;
    let _holder = hall.hold().await;
    let (mut router, _) = hall.router().await;
    let load = Load::on(hall.address);
    for _ in 0..5 {
        load.more(50).await;
        assert_eq!(router.stop().await, Some(0));
        // Nobody accepts now, and nobody is refused.
        (router, _) = hall.router().await;
    }
    load.more(50).await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_routers_accept_on_one_held_socket_and_either_may_go() {
    let hall = Hall::new().await;
    let _holder = hall.hold().await;
    let (one, first) = hall.router().await;
    let (two, second) = hall.router().await;
    let load = Load::on(hall.address);
    for admin in [first, second] {
        until("both serve", SOON, async || {
            let metrics = try_ask(admin, request("GET", "/metrics", "")).await.ok()?;
            let count = metrics.text().lines().find_map(|line| line.strip_prefix("kaai_router_routing_seconds_count "));
            let served = count.is_some_and(|count| count != "0");
            served.then_some(())
        })
        .await;
    }
    assert_eq!(one.stop().await, Some(0));
    load.more(100).await;
    let (one, _) = hall.router().await;
    assert_eq!(two.stop().await, Some(0));
    load.more(100).await;
    load.stop().await;
    drop(one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_goes_over_to_the_socket_of_the_next_holder() {
    let hall = Hall::new().await;
    let holder = hall.hold().await;
    let (router, _) = hall.router().await;
    hall.is_answered().await;
    // Killed, so that its unix socket is left behind.
    drop(holder);
    assert!(hall.held().exists());
    hall.is_answered().await;
    let _holder = hall.hold().await;
    // The kernel divides connections between the sockets for as long as there are two: whoever is in the new one is answered too.
    for _ in 0..50 {
        hall.is_answered().await;
    }
    assert_eq!(router.stop().await, Some(0));
    let address = hall.address;
    let waiting = Tasks::default().spawn(async move { ask(address, request("POST", SCORE, "{}")).await });
    let (_router, _) = hall.router().await;
    let answer = timeout(SOON, waiting).await.expect("whoever waited is answered").unwrap();
    assert_eq!(answer.text(), "[206.1]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_says_what_is_in_its_way_and_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let hall = Hall::new().await;
    let holder = hall.hold().await;
    let held = hall.held();
    assert_eq!(held.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let address = format!("127.0.0.1:{}", free_port());
    let refusal = |path: &PathBuf| {
        let refused = run(&["hold", "--address", &address, "--held", &path.display().to_string()]);
        assert_eq!(refused.status.code(), Some(1));
        String::from_utf8(refused.stderr).unwrap()
    };
    let second = refusal(&held);
    assert!(second.contains("another holder hands out its socket") && second.contains("--held"), "{second}");
    let file = hall.nats.folder().join("a-file");
    std::fs::write(&file, "mine").unwrap();
    let other = refusal(&file);
    assert!(other.contains("there is another file of this name"), "{other}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

    assert_eq!(holder.stop().await, Some(0));
    assert!(!held.exists());
    let nobody = run(&["hold", "--held", &held.display().to_string(), "--is-ready"]);
    let words = String::from_utf8(nobody.stderr).unwrap();
    assert!(nobody.status.code() == Some(1) && words.contains("start `kaai-router hold --held"), "{words}");
    let absent = run(&["--is-ready", "--admin-address", &address]);
    let words = String::from_utf8(absent.stderr).unwrap();
    assert!(absent.status.code() == Some(1) && words.contains("nobody answers at"), "{words}");
}

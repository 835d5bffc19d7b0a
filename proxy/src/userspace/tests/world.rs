//! Network namespaces on this machine, none with a link off it: a node with pods (as Amazon's VPC CNI wires them, /32 and
//! /128 behind a veth each) and a machine outside that also carries "another node's" pod.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use sheave_model::{Resource, Service, Snapshot, Store};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::userspace::testing::{delta_of, node};
use crate::userspace::{Options, Userspace, clean, start, sys};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, held by a thread that lives in it.
pub(super) struct Netns {
    jobs: mpsc::Sender<Job>,
    thread: i32,
}

impl Netns {
    pub(super) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            sys::new_network_namespace().expect("these tests need root");
            tell.send(sys::thread_id()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let ns = Self { jobs, thread: told.recv().unwrap() };
        // New IPv6 addresses are usable at once: nobody else is on these links.
        ns.sysctl("ipv6/conf/all/accept_dad", "0");
        ns.sysctl("ipv6/conf/default/accept_dad", "0");
        ns.ip("link set lo up");
        ns
    }

    /// Runs something in the namespace. What it spawns stays in there.
    pub(super) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(tell.send(f())))).unwrap();
        told.recv().expect("the job panicked")
    }

    /// `ip ARGUMENTS`, several separated by semicolons.
    pub(super) fn ip(&self, commands: &str) {
        for command in commands.split(';').map(str::trim).filter(|c| !c.is_empty()) {
            self.output("ip", command);
        }
    }

    /// What a program prints.
    pub(super) fn output(&self, program: &str, arguments: &str) -> String {
        let (program, words) =
            (program.to_owned(), arguments.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        self.run(move || {
            let output = Command::new(&program).args(&words).output().unwrap();
            assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Writes a sysctl under `net`.
    pub(super) fn sysctl(&self, name: &'static str, value: &'static str) {
        self.run(move || std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap());
    }

    /// A server that tells each connection who it is and whom it sees, then echoes until the end.
    pub(super) fn serve_tcp(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let listener = TcpListener::bind(address).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    std::thread::spawn(move || echo(name, &mut stream.unwrap()));
                }
            });
        });
    }

    /// A server that answers each datagram with who it is, whom it sees, and the datagram.
    pub(super) fn serve_udp(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let socket = UdpSocket::bind(address).unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
                    let mut answer = format!("{name} {peer} ").into_bytes();
                    answer.extend_from_slice(&buffer[..count]);
                    let _ = socket.send_to(&answer, peer);
                }
            });
        });
    }

    /// Connects, says "hi", and returns (name, peer address seen by the server, own address).
    pub(super) fn ask(&self, address: &str) -> std::io::Result<Answer> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(1500))?;
            stream.set_read_timeout(Some(Duration::from_secs(8)))?;
            let own = stream.local_addr()?;
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                line.push(byte[0]);
            }
            stream.write_all(b"hi")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut rest = String::new();
            stream.read_to_string(&mut rest)?;
            assert_eq!(rest, "hi");
            let line = String::from_utf8(line).unwrap();
            let (name, peer) = line.trim().split_once(' ').unwrap();
            Ok(Answer { name: name.into(), peer: peer.parse().unwrap(), own })
        })
    }

    /// Why a connection fails: "refused", "reset" or "silence".
    pub(super) fn fails(&self, address: &str) -> &'static str {
        match self.ask(address) {
            Ok(answer) => panic!("{address} was answered by {}", answer.name),
            Err(e) => match e.kind() {
                std::io::ErrorKind::ConnectionRefused => "refused",
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof => "reset",
                std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "silence",
                _ => panic!("{address}: {e}"),
            },
        }
    }
}

/// What a server said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) name: String,
    pub(super) peer: SocketAddr,
    pub(super) own: SocketAddr,
}

fn echo(name: &str, stream: &mut TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    let mut buffer = vec![0; 65_536];
    if stream.write_all(format!("{name} {peer}\n").as_bytes()).is_err() {
        return;
    }
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// A node with two pods, and a machine outside.
pub(super) struct World {
    pub(super) node: Netns,
    /// 10.1.0.5, fd01::5 and 10.1.0.6, fd01::6.
    pub(super) pods: [Netns; 2],
    /// 10.0.0.9, fd00::9; carries the remote pod 10.2.0.7, fd02::7.
    pub(super) outside: Netns,
    store: Store,
    sender: watch::Sender<Arc<Snapshot>>,
    metrics: Metrics,
    proxy: Option<Userspace>,
}

pub(super) const NODE: &str = "10.0.0.1";

impl World {
    pub(super) fn new() -> Self {
        let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).try_init();
        let (node_ns, outside) = (Netns::new(), Netns::new());
        let pods = [Netns::new(), Netns::new()];
        node_ns.sysctl("ipv4/ip_forward", "1");
        node_ns.sysctl("ipv6/conf/all/forwarding", "1");
        node_ns.ip(&format!("link add uplink type veth peer name uplink netns {}", outside.thread));
        node_ns.ip("addr add 10.0.0.1/24 dev uplink; addr add fd00::1/64 dev uplink nodad; link set uplink up;
             route add default via 10.0.0.9; -6 route add default via fd00::9");
        outside.ip(
            "addr add 10.0.0.9/24 dev uplink; addr add fd00::9/64 dev uplink nodad; link set uplink up;
             addr add 10.2.0.7/32 dev lo; addr add fd02::7/128 dev lo nodad;
             route add 10.1.0.0/24 via 10.0.0.1; -6 route add fd01::/64 via fd00::1;
             route add 10.96.0.0/16 via 10.0.0.1; -6 route add fd96::/64 via fd00::1; route add 192.0.2.0/24 via 10.0.0.1",
        );
        for (index, pod) in pods.iter().enumerate() {
            let last = index + 5;
            node_ns.ip(&format!("link add p{last} type veth peer name eth0 netns {}", pod.thread));
            node_ns.ip(&format!(
                "addr add 169.254.1.1/32 dev p{last}; -6 addr add fe80::1/64 dev p{last} nodad; link set p{last} up;
                 route add 10.1.0.{last} dev p{last}; -6 route add fd01::{last} dev p{last}"
            ));
            pod.ip(&format!(
                "addr add 10.1.0.{last}/32 dev eth0; addr add fd01::{last}/128 dev eth0 nodad; link set eth0 up;
                 route add 169.254.1.1 dev eth0; route add default via 169.254.1.1; -6 route add default via fe80::1 dev eth0"
            ));
        }
        let mut store = Store::default();
        store.apply(delta_of(vec![node(&[NODE, "fd00::1"], &["10.1.0.5", "10.1.0.6", "fd01::5", "fd01::6"])], vec![]));
        let sender = watch::Sender::new(Arc::new(store.snapshot().clone()));
        let metrics = Metrics::new().unwrap();
        let mut world = Self { node: node_ns, pods, outside, store, sender, metrics, proxy: None };
        world.start();
        world
    }

    pub(super) fn options() -> Options {
        Options { threads: 2, descriptors: Some(4000), ..Options::default() }
    }

    pub(super) fn start(&mut self) {
        self.metrics = Metrics::new().unwrap();
        let (receiver, metrics) = (self.sender.subscribe(), self.metrics.clone());
        self.proxy = Some(self.node.run(move || start(&Self::options(), receiver, &metrics)).unwrap());
        self.wait();
    }

    /// Ends the proxy as a crash would: at once.
    pub(super) fn stop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.proxy.take().unwrap().shutdown(Duration::ZERO));
    }

    /// Ends the proxy as SIGTERM does: the store goes first, and it may take a moment until the data path is told.
    pub(super) fn stop_gently(&mut self) {
        let newest = self.sender.borrow().clone();
        self.sender = watch::Sender::new(newest);
        std::thread::sleep(Duration::from_millis(20));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.proxy.take().unwrap().shutdown(Duration::from_secs(5)));
    }

    /// Applies changes and waits until the table has them.
    pub(super) fn apply(&mut self, services: Vec<Service>, removals: Vec<sheave_model::ResourceKey>) -> Duration {
        self.apply_any(services.into_iter().map(Resource::Service).collect(), removals)
    }

    pub(super) fn apply_any(&mut self, resources: Vec<Resource>, removals: Vec<sheave_model::ResourceKey>) -> Duration {
        let snapshot = self.store.apply(delta_of(resources, removals)).clone();
        let begin = Instant::now();
        self.sender.send_replace(Arc::new(snapshot));
        self.wait();
        begin.elapsed()
    }

    fn wait(&self) {
        let revision = self.store.snapshot().revision;
        let programmed = self.proxy.as_ref().unwrap().programmed();
        let end = Instant::now() + Duration::from_secs(20);
        while *programmed.borrow() < revision {
            assert!(Instant::now() < end, "revision {revision} was not programmed");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Reads a number off the metrics page: the line that starts with `series`.
    pub(super) fn metric(&self, series: &str) -> f64 {
        let page = String::from_utf8(self.metrics.page().unwrap()).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.map(|value| value.trim().parse().unwrap()).unwrap_or_default()
    }

    /// Waits until a number on the metrics page is `value`: some are counted after the client has its answer.
    pub(super) fn wait_for(&self, series: &str, value: f64) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.metric(series) != value {
            assert!(Instant::now() < end, "{series} is {} and not {value}", self.metric(series));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the proxy and removes everything of ours.
    pub(super) fn clean(&mut self) {
        if self.proxy.is_some() {
            self.stop();
        }
        self.node.run(|| clean(&Self::options())).unwrap();
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

//! The end of a network namespace that was named.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tproxy_user::instance::{NamespaceId, NamespaceWatch};

use crate::namespace::{in_namespace, ip};

/// A namespace that `ip netns` has a name for, until it is dropped.
struct Named(String);

impl Named {
    fn new(name: &str) -> Self {
        let name = format!("tpw-{name}-{}", std::process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn delete(&self) {
        ip(&format!("netns del {}", self.0));
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.path().exists() {
            self.delete();
        }
    }
}

/// A watch, and the descriptor with which an agent would keep the namespace alive.
fn watch(path: &Path) -> (NamespaceWatch, File) {
    let watch = NamespaceWatch::open(path, NamespaceId::of(path).unwrap()).unwrap();
    (watch, File::open(path).unwrap())
}

async fn assert_gone(watch: &mut NamespaceWatch) {
    let gone = tokio::time::timeout(Duration::from_secs(2), watch.gone()).await;
    gone.expect("told within two seconds").unwrap();
}

async fn assert_there(watch: &mut NamespaceWatch) {
    let gone = tokio::time::timeout(Duration::from_millis(100), watch.gone()).await;
    assert!(gone.is_err(), "{gone:?}");
}

#[test]
fn a_namespace_that_is_deleted_by_its_name_is_gone_and_another_is_not() {
    in_namespace(|_| async move {
        let (ours, other) = (Named::new("ours"), Named::new("other"));
        let (mut watch, _held) = watch(&ours.path());
        assert_there(&mut watch).await;
        other.delete();
        assert_there(&mut watch).await;
        ours.delete();
        assert_gone(&mut watch).await;
        assert_gone(&mut watch).await;
    });
}

#[test]
fn one_of_the_same_name_is_another() {
    in_namespace(|_| async move {
        let named = Named::new("again");
        let path = named.path();
        let (mut first, _held) = watch(&path);
        let namespace = NamespaceId::of(&path).unwrap();
        named.delete();
        ip(&format!("netns add {}", named.0));
        assert_gone(&mut first).await;
        // Deleted between entering it and the watch.
        let mut late = NamespaceWatch::open(&path, namespace).unwrap();
        assert_gone(&mut late).await;
        let (mut second, _held) = watch(&path);
        assert_there(&mut second).await;
        named.delete();
        let mut later = NamespaceWatch::open(&path, namespace).unwrap();
        assert_gone(&mut later).await;
    });
}

#[test]
fn a_namespace_that_is_mounted_anywhere_is_gone_when_it_is_unmounted() {
    in_namespace(|_| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("net", &link).unwrap();
        for (lazily, watched) in [(false, &path), (true, &path), (false, &link)] {
            let named = Named::new("mounted");
            File::create(&path).unwrap();
            let _mounted = Mounted::new(&named.path(), &path);
            // Held by its name, which is another mount: one of a file that is open cannot be unmounted.
            let namespace = NamespaceId::of(watched).unwrap();
            let mut watch = NamespaceWatch::open(watched, namespace).unwrap();
            assert_there(&mut watch).await;
            fs::write(directory.path().join("neighbour"), "").unwrap();
            fs::remove_file(directory.path().join("neighbour")).unwrap();
            assert_there(&mut watch).await;
            let options: &[&str] = if lazily { &["-l"] } else { &[] };
            expect_success("umount", &[options, &[text(&path)]].concat());
            assert_gone(&mut watch).await;
            fs::remove_file(&path).unwrap();
        }
    });
}

#[test]
fn the_namespace_of_a_process_is_gone_with_the_process() {
    in_namespace(|_| async move {
        let [mut ours, mut other] = [(), ()].map(|()| sleeper());
        let path = PathBuf::from(format!("/proc/{}/ns/net", ours.id()));
        let (mut watch, _held) = watch(&path);
        let namespace = NamespaceId::of(&path).unwrap();
        assert_there(&mut watch).await;
        end(&mut other);
        assert_there(&mut watch).await;
        ours.kill().unwrap();
        // Not yet waited for.
        assert_gone(&mut watch).await;
        ours.wait().unwrap();
        assert_gone(&mut watch).await;
        let mut late = NamespaceWatch::open(&path, namespace).unwrap();
        assert_gone(&mut late).await;

        let (mut of_this_process, _held) = self::watch(Path::new("/proc/self/ns/net"));
        assert_there(&mut of_this_process).await;
    });
}

/// `root` of a process with mounts of its own leads to names that are not there for others, or that
/// stand for something else.
#[test]
fn a_namespace_in_the_mounts_of_another_process_is_gone_with_its_name_or_the_process() {
    in_namespace(|_| async move {
        for (also_here, process_ends) in [(false, false), (true, false), (false, true)] {
            let here = also_here.then(|| Named::new("there"));
            let name = format!("tpw-there-{}", std::process::id());
            let mut host = host_of(&name);
            let root = PathBuf::from(format!("/proc/{}/root", host.id()));
            let path = root.join("run/netns").join(&name);
            let (mut watch, _held) = watch(&path);
            assert_there(&mut watch).await;
            drop(here);
            assert_there(&mut watch).await;
            if process_ends {
                end(&mut host);
            } else {
                let target = host.id().to_string();
                expect_success(
                    "nsenter",
                    &["-m", "-t", &target, "ip", "netns", "del", &name],
                );
            }
            assert_gone(&mut watch).await;
            let _ = (host.kill(), host.wait());
        }
    });
}

/// A process with mounts of its own, among which is a network namespace of this name.
fn host_of(name: &str) -> Child {
    const SETTLE: &str = "mount -t tmpfs tmpfs /run && ip netns add $0 && exec cat";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SETTLE, name]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.spawn().expect("unshare runs");
    wait_for_cat(&child);
    child
}

/// A bind mount, which goes at the latest when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(source: &Path, target: &Path) -> Self {
        expect_success("mount", &["--bind", text(source), text(target)]);
        Self(target.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It may be gone, as the test has it.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn sleeper() -> Child {
    let mut command = Command::new("unshare");
    command.args(["--net", "cat"]).stdin(Stdio::piped());
    let child = command.stdout(Stdio::null()).spawn().expect("unshare runs");
    wait_for_cat(&child);
    child
}

fn wait_for_cat(child: &Child) {
    let path = format!("/proc/{}/comm", child.id());
    while fs::read_to_string(&path).unwrap().trim() != "cat" {
        std::thread::yield_now();
    }
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn expect_success(command: &str, arguments: &[&str]) {
    let output = Command::new(command).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {arguments:?}: {errors}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

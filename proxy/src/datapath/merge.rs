//! The revision that every data path has: the smallest of what each says.

use tokio::sync::watch;

/// Follows `paths` until one of them ends, which it returns by index.
pub(crate) async fn lowest(mut paths: Vec<watch::Receiver<u64>>, all: watch::Sender<u64>) -> usize {
    loop {
        if let Some(lowest) = paths.iter_mut().map(|path| *path.borrow_and_update()).min() {
            all.send_if_modified(|now| std::mem::replace(now, lowest) != lowest);
        }
        let changes = paths.iter_mut().map(|path| Box::pin(path.changed()));
        let (changed, index, _) = futures::future::select_all(changes).await;
        if changed.is_err() {
            return index;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_revision_counts_once_every_path_has_it() {
        let paths = [watch::Sender::new(0_u64), watch::Sender::new(0)];
        let all = watch::Sender::new(0);
        let mut seen = all.subscribe();
        let task = tokio::spawn(lowest(paths.iter().map(watch::Sender::subscribe).collect(), all));
        paths[0].send_replace(5);
        paths[1].send_replace(3);
        assert_eq!(*seen.wait_for(|r| *r > 0).await.unwrap(), 3);
        paths[1].send_replace(7);
        assert_eq!(*seen.wait_for(|r| *r > 3).await.unwrap(), 5);
        let [_first, second] = paths;
        drop(second);
        assert_eq!(task.await.unwrap(), 1);
    }
}

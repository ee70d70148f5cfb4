"""What huggingface_hub makes of the cache; run by tests/hub/python.rs. Needs `pip install huggingface_hub`."""

import sys

from huggingface_hub import scan_cache_dir, snapshot_download

NEEDED = ["*.json", "LICENSE", "*.safetensors"]
print(snapshot_download("org/tiny", local_files_only=sys.argv[1] == "here", allow_patterns=NEEDED))
found = scan_cache_dir()
assert not found.warnings, found.warnings
(repo,) = found.repos
(revision,) = repo.revisions
print(repo.repo_id, revision.commit_hash, *sorted(revision.refs))
print(*sorted(file.file_name for file in revision.files))

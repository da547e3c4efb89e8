import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests import `helpers`; the repository's root is never on the path

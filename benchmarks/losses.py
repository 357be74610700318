import argparse, json, sys
